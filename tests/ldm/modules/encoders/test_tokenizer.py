"""The tokenizer: equal to the reference library on odd strings, and found in the stated order."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.errors import RequestError, WeightsError
from ldm.modules.encoders import tokenizer as module
from ldm.modules.encoders.tokenizer import FILES, ClipTokenizer, find_tokenizer

ROOT = Path(__file__).resolve().parents[4]
SHIPPED = ROOT / "models/emoji-v1/tokenizer"
START_ID, END_ID = 49406, 49407

CURIOUS = [
    "",
    " ",
    "\n\t \r\n",
    "a photograph of a cat playing a white ball in a lovely garden",
    "It's the DOG'S; they'll say we've, I'd, I'm, you're, don't, CAN'T 's 't",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m A\u030angstro\u0308m \ufb01n \u1e9e \u0130stanbul \u01c5",
    "\u732b\u5728\u82b1\u56ed\u91cc\u73a9\u767d\u7403\uff0c\u3053\u3093\u306b\u3061\u306f\u3002\ud55c\uad6d\uc5b4"
    " \u1112\u1161\u11ab",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "zero\u200bwidth\u200djoin\ufeff\u2060 soft\u00adhyphen",
    "bell\x07 null\x00 del\x7f next\x85line no\u00a0break \u2028 \u3000wide",
    "1234567890 3.14 1,000 \u00bd\u00b2 \u0663 \u2167 4k 8K 1980s",
    "((masterpiece)), [blurry:0.5], {a|b} <lora:x:1> ... !!! ?! -- __ ~~ ##",
    "<|endoftext|>",
    "a<|startoftext|>b <|endoftext|><|endoftext|> c",
    "<|endoftext|", "</w>", "a</w> b", "[UNK] [PAD]",
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947"
    " \u0e44\u0e17\u0e22 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "x" * 3000,
    "word " * 3000,
    "\u0301" * 200,
    "\U0010ffff\ue000\ufffd\ufffe",
]  # fmt: skip

POOLS = [
    "abcdefghijklmnopqrstuvwxyz      ",
    "ABCDEF 'st're've'll'd'm ",
    "0123456789 \u00bd\u00b2\u0663\u2167",
    "\u00e9\u00e8\u00fc\u00f1\u00e7\u00c5\u00df\u0130\u0131\u017f\u01c5 e\u0301a\u0308o\u0302",
    "\u732b\u5728\u82b1\u56ed\u91cc\u73a9\u767d\u7403 \u304b\u306a\ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\U0001f467\U0001f3fd\U0001f1e9\U0001f1ea\u2728\ufe0f",
    "\x00\x01\x07\x7f\x85\u00a0\u2028\u200b\u200d\ufeff\u3000\t\n\r\f\v",
    '!?.,;:-_#@()[]{}<|>/\\"`~$%^&*+=',
    "\u03b1\u03b2\u03b3\u03a3\u03c2\u0430\u0431\u0432\u042f\u0645\u0631\u062d"
    " \u0928\u092e\u0938\u094d\u0924\u0947 \u0e44\u0e17\u0e22 \u0300\u0301\u034f",
]
WHOLE = ["<|endoftext|>", "<|startoftext|>", "</w>", "it's", "I'LL", "[UNK]", "\r\n"]
SURROGATES = range(0xD800, 0xE000)


def odd_strings(count: int) -> list:
    """Mixtures of alphabets, signs, controls and whole special words; the same ones on every run."""
    draw = random.Random(20220822)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.15:
            return draw.choice(WHOLE)
        if kind < 0.25:
            code = draw.randrange(0x110000)
            return "" if code in SURROGATES else chr(code)
        pool = draw.choice(POOLS)
        return "".join(draw.choice(pool) for _ in range(draw.randint(1, 8)))

    return ["".join(piece() for _ in range(draw.randint(0, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(SHIPPED)


@pytest.fixture(scope="module")
def reference():
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizerFast.from_pretrained(str(SHIPPED))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A working directory and a project root with no tokenizer in them."""
    root, here = tmp_path / "project", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(module, "PROJECT_ROOT", root)
    monkeypatch.delenv("SDBATCH_CLIP", raising=False)
    return tmp_path


def put_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


def test_rows_equal_the_reference_on_thousands_of_odd_strings(tokenizer, reference):
    texts = CURIOUS + odd_strings(4000)
    expected = reference(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    different = [text for text, ours, theirs in zip(texts, tokenizer.rows(texts), expected) if ours != theirs]
    assert different == []


def test_nothing_is_cut_off_before_the_rows(tokenizer, reference):
    texts = CURIOUS + odd_strings(300)
    expected = reference(texts, add_special_tokens=False, verbose=False)["input_ids"]
    assert [tokenizer.encode(text) for text in texts] == expected


def test_known_tokens_have_their_published_numbers(tokenizer):
    assert tokenizer.rows(["a photo of a cat"])[0][:7] == [START_ID, 320, 1125, 539, 320, 2368, END_ID]


@pytest.mark.parametrize("text", CURIOUS[:3])
def test_a_blank_prompt_is_start_and_ends(tokenizer, text):
    assert tokenizer.rows([text]) == [[START_ID] + [END_ID] * 76]


@pytest.mark.parametrize("words", [74, 75, 76, 500])
def test_a_long_prompt_is_cut_to_the_room_between_start_and_end(tokenizer, words):
    text = " ".join(["cat"] * words)
    row = tokenizer.rows([text])[0]
    assert tokenizer.count(text) == words
    assert tokenizer.room == 75
    assert row == [START_ID] + [2368] * min(words, 75) + [END_ID] * (76 - min(words, 75))


def test_composed_and_decomposed_accents_are_one_prompt(tokenizer):
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


def test_a_special_token_in_other_case_is_a_word_and_not_an_end(tokenizer):
    """transformers before 5 takes it for the end of the text; since 5 it is a word, as here."""
    assert END_ID not in tokenizer.encode("a <|EndOfText|> b")


def test_a_smaller_context_gives_shorter_rows():
    assert ClipTokenizer(SHIPPED, context=6).rows(["a cat", "a " * 9]) == [
        [START_ID, 320, 2368, END_ID, END_ID, END_ID],
        [START_ID, 320, 320, 320, 320, END_ID],
    ]


def test_text_that_utf8_cannot_write_is_refused(tokenizer):
    """What Python makes of a command line whose bytes are not UTF-8."""
    with pytest.raises(RequestError) as caught:
        tokenizer.encode("caf\udce9 noir")
    assert str(caught.value) == (
        "a prompt must be text that UTF-8 can write, found '\\udce9' at character 4; write it in UTF-8"
    )


def test_the_shipped_vocabulary_is_whole():
    pairs = module.load_pairs(SHIPPED)
    assert pairs.get_vocab_size() == 49408
    assert [pairs.token_to_id(token) for token in ("!", "<|startoftext|>", "<|endoftext|>")] == [0, START_ID, END_ID]


def test_the_order_of_places_is_the_stated_one(bare, monkeypatch):
    """Each place is filled in turn, last one first, and takes the lead from those after it."""
    checkpoint = bare / "weights" / "model.ckpt"
    for folder in (
        bare / "project/models/emoji-v1/tokenizer",
        bare / "weights/tokenizer",
        bare / "project/models/clip-vit-large-patch14",
        bare / "here/models/clip-vit-large-patch14",
        bare / "project/mine",
        bare / "here/mine",
    ):
        put_tokenizer(folder)
        assert find_tokenizer(version="mine", checkpoint=checkpoint) == folder
    monkeypatch.setenv("SDBATCH_CLIP", str(put_tokenizer(bare / "variable")))
    assert find_tokenizer(version="mine", checkpoint=checkpoint) == bare / "variable"
    asked = put_tokenizer(bare / "asked for")
    assert find_tokenizer(str(asked), version="mine", checkpoint=checkpoint) == asked


def test_half_a_tokenizer_is_passed_over(bare):
    half = put_tokenizer(bare / "here/models/clip-vit-large-patch14")
    (half / "merges.txt").unlink()
    whole = put_tokenizer(bare / "project/models/clip-vit-large-patch14")
    assert find_tokenizer() == whole


def test_where_there_is_none_the_error_lists_every_place(bare):
    with pytest.raises(WeightsError) as caught:
        find_tokenizer(version="openai/clip-vit-large-patch14", checkpoint=bare / "weights/model.ckpt")
    message = str(caught.value)
    assert "a folder with vocab.json and merges.txt" in message
    assert "give --clip FOLDER" in message
    assert "\n" not in message
    for place in (
        "here/openai/clip-vit-large-patch14",
        "project/openai/clip-vit-large-patch14",
        "here/models/clip-vit-large-patch14",
        "project/models/clip-vit-large-patch14",
        "weights/tokenizer",
        "project/models/emoji-v1/tokenizer",
    ):
        assert str(bare / place) in message


@pytest.mark.parametrize("way", ["--clip", "SDBATCH_CLIP"])
def test_a_slip_in_a_named_folder_is_not_passed_over(bare, monkeypatch, way):
    put_tokenizer(bare / "here/models/clip-vit-large-patch14")
    if way == "SDBATCH_CLIP":
        monkeypatch.setenv(way, str(bare / "slip"))
    with pytest.raises(WeightsError, match=re.escape(f"looked in {way}: {bare}/slip;")):
        find_tokenizer(str(bare / "slip") if way == "--clip" else None)


def test_files_that_are_missing_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"needs vocab\.json and merges\.txt; merges\.txt not in "):
        ClipTokenizer(tmp_path)


@pytest.mark.parametrize("broken", ["<!DOCTYPE html><html></html>", "version https://git-lfs.github.com/spec/v1\n", ""])
def test_a_vocabulary_that_is_something_else_is_refused(tmp_path, broken):
    shutil.copy(SHIPPED / "merges.txt", tmp_path)
    (tmp_path / "vocab.json").write_text(broken)
    with pytest.raises(WeightsError, match=r"does not hold a CLIP tokenizer: .*copy vocab\.json and merges\.txt anew"):
        ClipTokenizer(tmp_path)


def test_the_vocabulary_of_another_model_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(WeightsError, match=re.escape("must hold <|startoftext|> and <|endoftext|>")):
        ClipTokenizer(tmp_path)


def test_counting_tokens_imports_no_torch():
    code = (
        "import sys; from pathlib import Path; from ldm.modules.encoders.tokenizer import ClipTokenizer; "
        f"print(ClipTokenizer(Path({str(SHIPPED)!r})).count('a white ball'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]
