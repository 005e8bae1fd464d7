"""Features of texts from a language model: proteins' sequences, SMILES, descriptions.

With h_1, ..., h_T the last hidden states of a text's T tokens, its features are their mean (1/T) sum_t h_t, in float32.
The tokens that a tokenizer adds (start, end, padding, mask) do not count; one that it does not know does. Texts of like
length share a batch and are masked, so that what else is embedded changes no more than the last digits.

Of a model only weights are read: no code that comes with it runs. One whose encoder's weights are not all there is
refused, since the others would be random.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbdiff.features.files import existing, labelled_texts
from perturbdiff.features.tables import FeatureTable, features_from

if TYPE_CHECKING:
    import torch

_COLUMNS = ("text", "sequence", "smiles")
_FASTA = (".fasta", ".fa", ".faa")

_UNLOADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, AssertionError)
"""What transformers raises for a model that it cannot load, and torch for a device that is not there."""

type Track = Callable[[Sequence[int]], Iterator[int]]

_LOG = logging.getLogger(__name__)


def read_texts(path: Path) -> dict[str, str]:
    """The text of each label: a .csv or .parquet with `label` and `text` (or `sequence`, or `smiles`), or a FASTA.

    In a FASTA (.fasta, .fa, .faa) the label is the first word after ">"; a "*" at the end of a sequence, the stop, is
    cut off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `labelled_texts`; or it is not FASTA, or has a record without a name or a sequence, or two of a
            name.
    """
    path = existing(path, "texts", (".csv", ".parquet", *_FASTA))
    if path.suffix not in _FASTA:
        return labelled_texts(path, _COLUMNS)
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} is not text, and a FASTA is; give another file.") from None
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines or not lines[0].startswith(">"):
        raise ValueError(f"{str(path)!r} does not begin with '>', and a FASTA does; give another file.")
    found: dict[str, str] = {}
    for record in "\n".join(lines).removeprefix(">").split("\n>"):
        header, _, sequence = record.partition("\n")
        label = (header.split() or [""])[0]
        sequence = sequence.replace("\n", "").removesuffix("*")
        if not label or not sequence or label in found:
            what = "has no name" if not label else "has no sequence" if not sequence else "is there twice"
            raise ValueError(
                f"record {label!r} of {path.name} {what}, and every record has a name of its own and a sequence; mend "
                "it, or leave it out."
            )
        found[label] = sequence
    return found


def embed_texts(
    texts: Mapping[str, str],
    model: str,
    *,
    batch_size: int = 8,
    max_length: int = 1024,
    device: str = "cpu",
    track: Track = iter,
) -> FeatureTable:
    """The mean of a language model's last hidden states over each text; see the module.

    Args:
        texts: of each label.
        model: a folder, or a name on the Hugging Face hub, of an encoder that transformers knows.
        batch_size: so many texts at once.
        max_length: tokens of a text, those that the tokenizer adds included; less where the model takes no more. What
            is longer is cut there, and said.
        device: "cpu", "cuda", ...
        track: wraps the list of batches, to show progress.

    Raises:
        ValueError: transformers is not installed, the model cannot be loaded or lacks weights, there are no texts, or
            one has no token; `batch_size` or `max_length` is too small.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} is below 1, and a batch holds texts; give at least 1.")
    if not texts:
        raise ValueError("there are no texts to embed, and features are of some; give at least one.")
    import torch

    encoder = _Encoder(model, device)
    longest = min(max_length, encoder.longest)
    tokens, n_cut = encoder.tokens(list(texts.values()), longest)
    if n_cut:
        _LOG.info(f"{n_cut} of {len(texts)} texts have more than {longest} tokens and are cut there.")
    for label, ids in zip(texts, tokens, strict=True):
        if not any(token not in encoder.added for token in ids):
            raise ValueError(
                f"the text {texts[label]!r} of label {label!r} has no token for {model!r}, and features are a mean "
                "over tokens; give another text, or leave the label out."
            )
    by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    rows: list[Any] = [None] * len(tokens)
    with torch.inference_mode():
        for first in track(range(0, len(tokens), batch_size)):
            chosen = by_length[first : first + batch_size]
            for i, row in zip(chosen, encoder.means([tokens[i] for i in chosen]), strict=True):
                rows[i] = row
    values = np.stack(rows)
    if encoder.absent and np.isnan(values).any():
        raise ValueError(
            f"the model {model!r} lacks {len(encoder.absent)} weights of its encoder, such as {encoder.absent[0]!r}, "
            "which would be random; give one that was saved with all of them."
        )
    return features_from(list(texts), values, f"embeddings by {model}")


class _Encoder:
    """A loaded model and its tokenizer.

    Attributes:
        longest: so many tokens it takes at most.
        added: tokens that are not of a text.
        absent: weights that were not there. They are NaN, so that the result shows whether it needs them.
    """

    def __init__(self, name: str, device: str) -> None:
        transformers = _transformers()
        options = {"trust_remote_code": False}
        try:
            with _quiet(transformers):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
                found, report = transformers.AutoModel.from_pretrained(name, output_loading_info=True, **options)
                found = found.float().eval().to(device)
        except _unloadable() as error:
            reason = " ".join(str(error).split()).replace(". ", "; ")[:160].rstrip(" .") or type(error).__name__
            raise ValueError(
                f"the model {name!r} cannot be loaded ({reason}); give the folder of a model and its tokenizer, or "
                "its name on the Hugging Face hub."
            ) from None
        self.absent = _made_nan(found, report["missing_keys"])
        self._encoder = found.get_encoder() if found.config.is_encoder_decoder else found
        self._device = device
        self.longest = _longest(self._encoder, self._tokenizer)
        self.added = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}

    def tokens(self, texts: Sequence[str], longest: int) -> tuple[list[list[int]], int]:
        """The tokens of each text, at most so many, and how many texts were cut.

        Raises:
            ValueError: there is no room for a token that is of the text.
        """
        if longest <= (added := self._tokenizer.num_special_tokens_to_add()):
            raise ValueError(
                f"max_length = {longest} leaves no token of a text, since the tokenizer adds {added}; give more."
            )
        found = [self._tokens(text, longest + 1) for text in texts]
        cut = [i for i, ids in enumerate(found) if len(ids) > longest]
        for i in cut:
            found[i] = self._tokens(texts[i], longest)
        return found, len(cut)

    def _tokens(self, text: str, longest: int) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        return ids

    def means(self, tokens: Sequence[Sequence[int]]) -> Any:  # noqa: ANN401 - an array [texts, width]
        """The mean of the last hidden states over each text's own tokens."""
        import torch

        padding = self._tokenizer.pad_token_id or 0
        sequences = [torch.tensor(ids, dtype=torch.long) for ids in tokens]
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(one) for one in tokens])
        there = torch.arange(ids.shape[1]) < lengths[:, None]
        own = there & ~torch.isin(ids, torch.tensor(sorted(self.added), dtype=torch.long))
        state = self._encoder(
            input_ids=ids.to(self._device), attention_mask=there.long().to(self._device)
        ).last_hidden_state
        weight = own.to(state)
        # padding may hold anything, and 0 times anything may be no number
        kept = state.masked_fill(~own.to(self._device)[..., None], 0)
        return (kept.sum(dim=1) / weight.sum(dim=1, keepdim=True)).cpu().numpy()


def _transformers() -> ModuleType:
    try:
        found = import_module("transformers")
    except ImportError:
        raise ValueError(
            "language models need the package transformers, which is not installed; install the extra: "
            "pip install 'perturbdiff[language]'."
        ) from None
    return found


def _unloadable() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (*_UNLOADABLE, SafetensorError)


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """No reports and progress bars of transformers, which go to standard error."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _made_nan(model: "torch.nn.Module", keys: Sequence[str]) -> list[str]:
    """Set the parameters of these names to NaN, and name them; other names are of no parameter."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {key.removeprefix(prefix) for key in keys}
    found = {name: value for name, value in model.named_parameters() if name in names}
    for value in found.values():
        value.data.fill_(float("nan"))
    return sorted(found)


def _longest(model: "torch.nn.Module", tokenizer: Any) -> int:  # noqa: ANN401 - of transformers
    """The most tokens that the tokenizer allows and the model has positions for."""
    import torch

    longest = int(tokenizer.model_max_length)  # a very large number where it does not say
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # positions begin behind that of padding, where there is one
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            longest = min(longest, module.num_embeddings - before)
    return longest
