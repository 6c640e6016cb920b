"""The commands: what each is for, and the call it makes. All heavy imports are inside."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from visionmlp.cli import options
from visionmlp.cli.parser import add_fields, options_from

if TYPE_CHECKING:
    from rich.console import Console

    from visionmlp.models.backbone import Backbone
    from visionmlp.models.checkpoint import CheckpointInfo
