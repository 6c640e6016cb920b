"""All commands, in the order of the help."""

from visionmlp.cli.average import AVERAGE
from visionmlp.cli.bench import BENCH
from visionmlp.cli.check_data import CHECK_DATA
from visionmlp.cli.compare import COMPARE
from visionmlp.cli.convert import CONVERT
from visionmlp.cli.demo import DEMO
from visionmlp.cli.deploy import DEPLOY
from visionmlp.cli.evaluate import EVAL
from visionmlp.cli.export import EXPORT
from visionmlp.cli.models import MODELS
from visionmlp.cli.pack import PACK
from visionmlp.cli.predict import PREDICT
from visionmlp.cli.recipes import RECIPES
from visionmlp.cli.train import TRAIN
from visionmlp.cli.train_tokenizer import TRAIN_TOKENIZER
from visionmlp.cli.translate import TRANSLATE

COMMANDS = {
    "models": MODELS,
    "recipes": RECIPES,
    "train": TRAIN,
    "eval": EVAL,
    "predict": PREDICT,
    "translate": TRANSLATE,
    "compare": COMPARE,
    "check-data": CHECK_DATA,
    "pack": PACK,
    "train-tokenizer": TRAIN_TOKENIZER,
    "average": AVERAGE,
    "convert": CONVERT,
    "deploy": DEPLOY,
    "export": EXPORT,
    "bench": BENCH,
    "demo": DEMO,
}
