"""Heads that find objects: RetinaNet, and R-CNN in one stage or several, with masks or without.

They take the levels of an `FPN`, and compute on torchvision's parts where these have the definition that is asked for.
"""
