import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    T5Config,
    T5Model,
)

from perturbdiff.features.texts import embed_texts, read_texts

RESIDUES = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCX", "<mask>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "cell", "##s"]
PROTEINS = {"P1": "MKV", "P2": "MKTAYIAKQRQ", "P3": "A", "P4": "LLLLVV", "P5": "MKTAYIAKQRQISFV"}


def save(model, tokenizer, folder):
    """A model of random weights that differ from text to text, and its tokenizer."""
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        weights.data = 0.4 * torch.randn(weights.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def vocabulary(tokens, folder):
    (folder / "vocab.txt").write_text("\n".join(tokens))
    return str(folder / "vocab.txt")


def esm(folder, **changes):
    settings = {
        "vocab_size": len(RESIDUES),
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 20,
        "pad_token_id": 1,
        "mask_token_id": len(RESIDUES) - 1,
        "position_embedding_type": "rotary",
        "token_dropout": True,
    }
    return save(EsmForMaskedLM(EsmConfig(**settings | changes)), EsmTokenizer(vocabulary(RESIDUES, folder)), folder)


def bert(folder):
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=10,
    )
    return save(BertModel(config), BertTokenizer(vocabulary(WORDS, folder)), folder)


@pytest.fixture(scope="module", params=["rotary", "absolute"])
def proteins(request, tmp_path_factory):
    return esm(tmp_path_factory.mktemp(request.param), position_embedding_type=request.param)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert"))


def test_features_are_the_mean_of_the_last_hidden_states_of_a_texts_own_tokens(proteins):
    found = embed_texts(PROTEINS, proteins)
    model = EsmForMaskedLM.from_pretrained(proteins).esm.eval()
    for label, sequence in PROTEINS.items():
        ids = [0, *(RESIDUES.index(residue) for residue in sequence), 2]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        expected = states[1:-1].mean(dim=0).numpy()
        np.testing.assert_allclose(found.rows([label])[0], expected, rtol=1e-4, atol=1e-5)
    assert (len(found), found.width, found.origin) == (5, 12, f"embeddings by {proteins}")


def test_what_shares_a_batch_and_how_far_it_is_padded_changes_nothing(proteins, words):
    for model, texts in ((proteins, PROTEINS), (words, {"1": "a", "2": "b cells a", "3": "cells", "4": "a b a b a"})):
        alone = [embed_texts({label: text}, model).rows([label])[0] for label, text in sorted(texts.items())]
        assert np.abs(np.diff(alone, axis=0)).max(axis=1).min() > 0.01
        for batch_size in (1, 2, 3, 100):
            found = embed_texts(texts, model, batch_size=batch_size)
            np.testing.assert_allclose(found.values, alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_texts_does_not_matter(proteins):
    a, b = (embed_texts(texts, proteins) for texts in (PROTEINS, dict(reversed(PROTEINS.items()))))
    assert a.labels == b.labels
    np.testing.assert_allclose(a.values, b.values, atol=1e-6)


def test_an_unknown_token_counts_and_a_mask_does_not(words):
    one = embed_texts({"known": "a", "masked": "[MASK]a", "unknown": "a zzz"}, words)
    model = BertModel.from_pretrained(words).eval()
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0] for ids in ([2, 4, 5, 3], [2, 5, 1, 3])]
    np.testing.assert_allclose(one.rows(["masked"])[0], states[0][2].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.rows(["unknown"])[0], states[1][1:3].mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_longer_texts_are_cut_and_it_is_said(words, tmp_path, said):
    texts = {"long": "a b " * 10, "cut": "a b a", "short": "a b"}
    found = embed_texts(texts, words, max_length=4)
    assert said == ["2 of 3 texts have more than 4 tokens and are cut there."]
    assert np.array_equal(found.rows(["long"]), found.rows(["cut"]))
    np.testing.assert_allclose(found.rows(["long"]), found.rows(["short"]), atol=1e-6)
    embed_texts(texts, words)
    assert said[1:] == ["1 of 3 texts have more than 10 tokens and are cut there."]
    absolute = esm(tmp_path, position_embedding_type="absolute")
    embed_texts({"long": "L" * 30, "fits": "L" * 16}, absolute)
    assert said[2:] == ["1 of 2 texts have more than 18 tokens and are cut there."]  # 20 positions from 2 on


def test_the_encoder_of_an_encoder_decoder_is_taken(words, tmp_path):
    config = T5Config(vocab_size=len(WORDS), d_model=12, d_kv=6, d_ff=8, num_layers=1, num_heads=2)
    model = save(T5Model(config), BertTokenizer(vocabulary(WORDS, tmp_path)), tmp_path)
    found = embed_texts({"1": "a b", "2": "cells"}, model)
    with torch.no_grad():
        states = T5Model.from_pretrained(model).get_encoder().eval()(torch.tensor([[2, 5, 6, 3]])).last_hidden_state[0]
    np.testing.assert_allclose(found.rows(["1"])[0], states[1:3].mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_batches_are_tracked_and_nothing_is_printed(proteins, capfd):
    seen = []

    def track(items):
        assert len(items) == 3
        for item in items:
            yield item
            seen.append(item)

    capfd.readouterr()
    embed_texts(PROTEINS, proteins, batch_size=2, track=track)
    assert len(seen) == 3
    assert tuple(capfd.readouterr()) == ("", "")


def test_weights_that_are_missing_are_refused_where_the_result_needs_them(tmp_path):
    model = esm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    whole = embed_texts(PROTEINS, model)
    for name, needed in (
        ("esm.contact_head.regression.weight", False),
        ("esm.encoder.layer.1.output.dense.bias", True),
    ):
        assert name in weights
        save_file(
            {key: one for key, one in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        if not needed:
            assert np.array_equal(embed_texts(PROTEINS, model).values, whole.values)
            continue
        sentence = r"lacks \d weights of its encoder, such as '.*', which would be random; give one that .*\.$"
        with pytest.raises(ValueError, match=sentence):
            embed_texts(PROTEINS, model)


def test_a_model_that_cannot_be_loaded_is_refused(words, tmp_path):
    sentence = (
        r"^the model '.*' cannot be loaded \(.*\); give the folder of a model and its tokenizer, or its name on .*\.$"
    )
    folders = {name: tmp_path / name for name in ("absent", "empty", "damaged", "unknown")}
    for name, folder in folders.items():
        if name != "absent":
            folder.mkdir()
    esm(folders["damaged"])
    (folders["damaged"] / "model.safetensors").write_bytes(b"damaged")
    (folders["unknown"] / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    for folder in folders.values():
        with pytest.raises(ValueError, match=sentence):
            embed_texts(PROTEINS, str(folder))
    with pytest.raises(ValueError, match=sentence):
        embed_texts(PROTEINS, words, device="abacus")


def test_texts_that_cannot_be_embedded_are_refused(words):
    with pytest.raises(ValueError, match=r"^the text '\[MASK\]' of label 'x' has no token for '.*', and features are"):
        embed_texts({"y": "a", "x": "[MASK]"}, words)
    with pytest.raises(ValueError, match=r"^there are no texts to embed"):
        embed_texts({}, words)
    with pytest.raises(ValueError, match=r"^batch_size = 0 is below 1"):
        embed_texts({"x": "a"}, words, batch_size=0)
    with pytest.raises(
        ValueError, match=r"^max_length = 2 leaves no token of a text, since the tokenizer adds 2; give"
    ):
        embed_texts({"x": "a"}, words, max_length=2)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"^language models need .* the extra: pip install 'perturbdiff\[language\]'\.$"
    ):
        embed_texts({"x": "a"}, "anything")


# reading


@pytest.mark.parametrize("column", ["text", "sequence", "smiles"])
def test_texts_are_read_from_tables(column, tmp_path):
    frame = pd.DataFrame({"label": ["a", "NA"], column: ["MKV", "AA"], "other": [1, 2]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    assert read_texts(tmp_path / "x.csv") == read_texts(tmp_path / "x.parquet") == {"a": "MKV", "NA": "AA"}


@pytest.mark.parametrize("suffix", [".fasta", ".fa", ".faa"])
def test_a_fasta_gives_each_sequence_by_the_first_word_of_its_header(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_text("\n>sp|P1|A_B Some protein OS=x\nMKV\nLLA\n\n> P2\r\nAA*\r\n>P3 >x\nA")
    assert read_texts(path) == {"sp|P1|A_B": "MKVLLA", "P2": "AA", "P3": "A"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"MKV\n>P1\nMKV", "x.fasta' does not begin with '>', and a FASTA does"),
        (b"", "x.fasta' does not begin with '>'"),
        (b">P1\nMKV\n>\nMKV", "record '' of x.fasta has no name"),
        (b">P1\nMKV\n>P2 no sequence\n>P3\nA", "record 'P2' of x.fasta has no sequence"),
        (b">P1\nMKV\n>P2\n*", "record 'P2' of x.fasta has no sequence"),
        (b">P1 a\nMKV\n>P1 b\nMKV", "record 'P1' of x.fasta is there twice"),
        (b">P1\n\xff\xfe", "x.fasta' is not text, and a FASTA is"),
    ],
)
def test_what_is_no_fasta_is_refused(content, sentence, tmp_path):
    (tmp_path / "x.fasta").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{sentence}.*\.$"):
        read_texts(tmp_path / "x.fasta")


def test_files_of_texts_that_are_not_there_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of texts"):
        read_texts(tmp_path / "none.fasta")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"x.txt' ends in '.txt', and files of texts are .csv, .parquet, .fasta"):
        read_texts(tmp_path / "x.txt")
    (tmp_path / "x.csv").write_text("label,txt\na,b\n")
    with pytest.raises(ValueError, match=r"no column 'text' or 'sequence' or 'smiles', .* the nearest is 'txt'"):
        read_texts(tmp_path / "x.csv")
