"""An export read back: a folder that stands alone, from which the module is built as it was judged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import nested
from nested import rundir
from nested.errors import UserError
from nested.levels import from_config
from nested.model_context import model_context
from nested.settings import level_configs
from nested.signature import build

if TYPE_CHECKING:
    from nested.methods.method import Method
    from nested.sequences.tokenizer import TokenizerFile

FORMAT = 1
WEIGHTS, CONFIG, ABOUT, TOKENIZER = "model.safetensors", "config.yaml", "export.json", "tokenizer.json"


@dataclass(frozen=True)
class Export:
    """An export as it was read: `about` is export.json, `config` the config of the run."""

    path: Path
    about: dict[str, Any]
    config: dict[str, Any]

    def model(self, device: str | torch.device = "cpu") -> nn.Module:
        """The module in evaluation mode, equal to the last bit to what the run judged last. Raises UserError."""
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
            model = self._built()
        weights = read_weights(self.path / WEIGHTS)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            then, now = self.about["packages"]["nested"], nested.__version__
            text = f"the weights of {self.path} do not fit what model._target_ builds here: "
            text += f"{' '.join(str(error).split())[:300]}; exported with nested {then}, this is {now}"
            raise UserError(text, key="export", seen=str(self.path)) from None
        return model.to(device).eval()

    def _built(self) -> nn.Module:
        model = self.untrained()
        if self.config["trainer"]["precision"] == "64-true":
            model.to(torch.float64)
        if not self.about["by_method"]:
            return model
        method: Method = self._component("method", seed=self.config["seed"])
        return method.exported(model)

    def untrained(self) -> nn.Module:
        """The module as the run built it, with initial weights. Raises UserError."""
        said = self.about["stream"]
        stream, levels = SimpleNamespace(about=said, **said), from_config(level_configs(self.config["levels"]))
        return self._component("model", **model_context(stream, levels))

    def tokenizer(self) -> TokenizerFile | None:
        """The one that the run read its text with; None where it read bytes. Raises UserError."""
        if not self.about["stream"].get("tokenizer"):
            return None
        if TOKENIZER not in self.about["files"]:
            text = f"{self.path} does not hold the tokenizer of its text; export the run again"
            raise UserError(text, key="export", seen=str(self.path))
        from nested.sequences.tokenizer import TokenizerFile

        return TokenizerFile(self.path / TOKENIZER)

    def _component(self, group: str, **context: Any) -> Any:
        """Raises UserError with the package that the component came from, where it cannot be built here."""
        section = self.config[group]
        target, origin = section["_target_"], self.about["components"].get(group)
        mend = f"the export was made with {origin}: install it" if origin else "put its file in the current directory"
        try:
            return build(section, group, **context)
        except UserError as error:
            raise UserError(f"{error.message}; {mend}", key=error.key, seen=error.seen, allowed=error.allowed) from None
        except ImportError as error:
            text = f"{target} cannot be imported: {error}; {mend}"
            raise UserError(text, key=f"{group}._target_", seen=target) from None


def find(name: str, runs: str | Path = "runs") -> Path:
    """The folder of an export: by its path, or as that of a run which has one, by the run's id, path or unique prefix.

    Raises UserError for a name that means neither, and for a run without an export or with several.
    """
    folder = Path(name).expanduser()
    if (folder / ABOUT).is_file():
        return folder
    try:
        run = rundir.find(name, runs, "export or run")
    except UserError:
        if folder.is_dir():
            raise no_export(folder) from None
        raise
    there = [home for home in (run / "export", *sorted(run.glob("seed-*/export"))) if (home / ABOUT).is_file()]
    if not there:
        raise no_export(run)
    if len(there) > 1:
        text = f"{run.name} has {len(there)} exports; give one's path: {', '.join(map(str, there))}"
        raise UserError(text, key="export", seen=name, allowed=list(map(str, there)))
    return there[0]


def read(path: str | Path) -> Export:
    """An export, its files checked against their digests. Raises UserError: what it is instead, and how to mend it."""
    folder = Path(path).expanduser()
    file = folder / ABOUT
    if not file.is_file():
        raise no_export(folder)
    try:
        about = json.loads(file.read_text())
        version = int(about["format"])
    except (ValueError, KeyError, TypeError):
        text = f"{file} is damaged: it says no format; export the run again"
        raise UserError(text, key="export", seen=str(path)) from None
    if version != FORMAT:
        text = f"{folder} is an export of format {version}; this version of nested ({nested.__version__}) reads format "
        mend = "install a newer one" if version > FORMAT else "export the run again"
        raise UserError(f"{text}{FORMAT}: {mend}", key="export", seen=version, allowed=FORMAT)
    for name, digest in about["files"].items():
        if not (folder / name).is_file() or sha256((folder / name).read_bytes()) != digest:
            text = f"{folder / name} is damaged or was changed: its digest is not the one in {ABOUT}"
            raise UserError(f"{text}; export the run again", key="export", seen=name)
    config = rundir.read_config(folder)
    config["model"].pop("warm_start", None)  # the weights are here; those that it started from may be gone
    return Export(folder.resolve(), about, config)


def no_export(folder: Path) -> UserError:
    """The error for a folder that is none: what it is instead, and how to get one."""
    if (folder / "FORMAT").is_file():
        text = f"{folder} is a run, not an export; make one with: nested export {folder}"
    else:
        what = f"has no {ABOUT}" if folder.is_dir() else "is not there"
        text = f"{folder} {what}; `nested export RUN` writes an export and says where"
    return UserError(text, key="export", seen=str(folder))


def sha256(data: bytes) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(data).hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError where it cannot be read."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        text = f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; export the run again"
        raise UserError(text, key="export", seen=str(file)) from None
