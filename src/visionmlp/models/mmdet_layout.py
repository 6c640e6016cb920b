"""Names of a detector's parts in mmdet 2.11's files. Values lie there as they do here."""

import re

_RULES = (
    (r"(neck\..*)", r"\1"),
    (r"head\.head\.classification_head\.conv\.(\d+)\.0\.(.*)", r"bbox_head.cls_convs.\1.conv.\2"),
    (r"head\.head\.classification_head\.cls_logits\.(.*)", r"bbox_head.retina_cls.\1"),
    (r"head\.head\.regression_head\.conv\.(\d+)\.0\.(.*)", r"bbox_head.reg_convs.\1.conv.\2"),
    (r"head\.head\.regression_head\.bbox_reg\.(.*)", r"bbox_head.retina_reg.\1"),
    (r"head\.rpn\.head\.conv\.0\.0\.(.*)", r"rpn_head.rpn_conv.\1"),
    (r"head\.rpn\.head\.cls_logits\.(.*)", r"rpn_head.rpn_cls.\1"),
    (r"head\.rpn\.head\.bbox_pred\.(.*)", r"rpn_head.rpn_reg.\1"),
)
_STAGED = (
    (r"head\.box_stages\.(\d+)\.convs\.(\d+)\.(.*)", r"roi_head.bbox_head.\1.shared_convs.\2.\3"),
    (r"head\.box_stages\.(\d+)\.fcs\.(\d+)\.(.*)", r"roi_head.bbox_head.\1.shared_fcs.\2.\3"),
    (r"head\.box_stages\.(\d+)\.cls_score\.(.*)", r"roi_head.bbox_head.\1.fc_cls.\2"),
    (r"head\.box_stages\.(\d+)\.bbox_pred\.(.*)", r"roi_head.bbox_head.\1.fc_reg.\2"),
    (r"head\.mask_stages\.(\d+)\.head\.(\d+)\.0\.(.*)", r"roi_head.mask_head.\1.convs.\2.conv.\3"),
    (r"head\.mask_stages\.(\d+)\.predictor\.conv5_mask\.(.*)", r"roi_head.mask_head.\1.upsample.\2"),
    (r"head\.mask_stages\.(\d+)\.predictor\.mask_fcn_logits\.(.*)", r"roi_head.mask_head.\1.conv_logits.\2"),
)


def mmdet_name(name: str, *, staged: bool) -> str | None:
    """The name in mmdet's files of an entry of a detector's state; None for what they do not have.

    Args:
        name: ours.
        staged: the head is a cascade, whose names have the stage's number.
    """
    for pattern, theirs in (*_RULES, *_STAGED):
        if match := re.fullmatch(pattern, name):
            if not staged and (pattern, theirs) in _STAGED:
                theirs = theirs.replace(r"head.\1.", "head.")
            return match.expand(theirs)
    return None
