"""Every line of a prompts file becomes its pictures, or one error that names the file and the line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from ldm.errors import RequestError
from ldm.inference.prompts import find_encoding, read_lines, read_prompts
from ldm.inference.spec import GenerationRequest, SamplerConfig, SamplerName, Shortcuts, Spacing

TEMPLATE = GenerationRequest(prompt="", negative_prompt="blurry", seed=7, height=64, width=128)


def text_file(folder: Path, text: str, encoding: str = "utf-8", name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def json_file(folder: Path, *lines: object) -> Path:
    return text_file(folder, "\n".join(json.dumps(line) for line in lines), name="prompts.jsonl")


def prompts(path: Path) -> list[str]:
    return [request.prompt for request in read_prompts(path, TEMPLATE)]


def failure(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        list(read_prompts(path, TEMPLATE))
    return str(caught.value).replace(str(path), path.name)


def test_each_line_of_a_text_file_is_a_prompt(tmp_path):
    path = text_file(tmp_path, "a lion\n\n  # a remark\n \t\na cat, sitting # on a mat\n")
    assert prompts(path) == ["a lion", "a cat, sitting # on a mat"]


@pytest.mark.parametrize("name", ["prompts", "prompts.list", "prompts.txt"])
def test_lines_alone_are_read_from_a_file_of_any_name(tmp_path, name):
    assert read_lines(text_file(tmp_path, "\ufeffa lion\n\n# a remark\n一只猫\n", name=name)) == ["a lion", "一只猫"]
    with pytest.raises(RequestError, match="must hold at least one prompt"):
        read_lines(text_file(tmp_path, "# a remark\n", name=name))


def test_what_a_line_does_not_say_is_taken_from_the_template(tmp_path):
    [request] = read_prompts(text_file(tmp_path, "a lion"), TEMPLATE)
    assert request == GenerationRequest(prompt="a lion", negative_prompt="blurry", seed=7, height=64, width=128)


def test_pictures_count_their_seeds_over_the_whole_file(tmp_path):
    requests = read_prompts(text_file(tmp_path, "a\nb\n"), TEMPLATE, images_per_prompt=2)
    assert [(request.prompt, request.seed) for request in requests] == [("a", 7), ("a", 8), ("b", 9), ("b", 10)]


def test_a_seed_of_its_own_counts_within_its_line_and_leaves_the_other_seeds_alone(tmp_path):
    path = json_file(tmp_path, {"prompt": "a", "seed": 100}, {"prompt": "b"})
    requests = read_prompts(path, TEMPLATE, images_per_prompt=2)
    assert [request.seed for request in requests] == [100, 101, 9, 10]


def test_a_json_line_may_set_every_field_of_a_request(tmp_path):
    (tmp_path / "start.png").write_bytes(b"not read as a picture here")
    fields = {"prompt": "a", "negative_prompt": "b", "seed": 3, "height": 8, "width": 16, "steps": 9}
    fields.update(sampler="ddim", schedule="quad", guidance_scale=2, eta=0.5, init="start.png", strength=1)
    [request] = read_prompts(json_file(tmp_path, fields), TEMPLATE)
    assert request.sampler == SamplerConfig(SamplerName.DDIM, 9, 2, 0.5, Spacing.QUAD)
    assert (request.prompt, request.negative_prompt, request.seed) == ("a", "b", 3)
    assert (request.height, request.width) == (8, 16)
    assert request.init is not None
    assert request.init.path == str(tmp_path / "start.png")
    assert request.init.sha256 == sha256(b"not read as a picture here").hexdigest()
    assert request.init.strength == 1


def test_a_json_line_changes_those_shortcuts_that_it_names(tmp_path):
    template = dataclasses.replace(TEMPLATE, sampler=SamplerConfig(shortcuts=Shortcuts(cache_interval=3)))
    lines = [
        {"prompt": "a", "guidance_until": 1},
        {"prompt": "a", "merge_tokens": 0.5},
        {"prompt": "a", "cache_interval": 1},
    ]
    found = [request.sampler.shortcuts for request in read_prompts(json_file(tmp_path, *lines), template)]
    assert found == [Shortcuts(3), Shortcuts(3, merge_tokens=0.5), Shortcuts()]


def test_a_whole_number_where_a_number_is_asked_for_makes_the_same_request(tmp_path):
    whole, real = read_prompts(
        json_file(tmp_path, *[{"prompt": "a", "seed": 1, "guidance_scale": scale} for scale in (2, 2.0)]), TEMPLATE
    )
    assert whole.request_id == real.request_id


def test_sides_must_suit_the_model(tmp_path):
    path = text_file(tmp_path, "a lion")
    with pytest.raises(
        RequestError, match=r"prompts\.txt:1: height must be a multiple of 128 px, at most 4096, got 64"
    ):
        list(read_prompts(path, TEMPLATE, size_multiple=128))


def test_an_init_image_is_looked_for_beside_the_prompts_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "start.png").write_bytes(b"x")
    path = json_file(tmp_path / "sub", {"prompt": "a", "init": "start.png"})
    monkeypatch.chdir(tmp_path)
    [request] = read_prompts(path.relative_to(tmp_path), TEMPLATE)
    assert request.init is not None
    assert request.init.path == str(tmp_path / "sub" / "start.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030"])
def test_chinese_text_is_read_in_the_encodings_people_save_it_in(tmp_path, encoding):
    assert prompts(text_file(tmp_path, "一只狮子\n花园里的白色的球\n", encoding)) == ["一只狮子", "花园里的白色的球"]


def test_a_file_read_as_gbk_is_said_with_the_line_that_decided_it(tmp_path, caplog):
    path = text_file(tmp_path, "a lion\n一只狮子\n", "gbk")
    assert find_encoding(path) == "gb18030"
    assert [record.getMessage() for record in caplog.records] == [f"{path} is not UTF-8 (line 2), so it is read as GBK"]


def test_one_encoding_reads_the_whole_file(tmp_path):
    path = tmp_path / "mixed.txt"
    path.write_bytes("一只狮子\n".encode("gbk") + "花 \n".encode())
    assert failure(path) == "mixed.txt:1: the text must be UTF-8 or GBK, this line is neither; save it as UTF-8"


def test_text_in_no_known_encoding_names_its_first_line(tmp_path):
    path = text_file(tmp_path, "a lion\na café au lait\n", "latin-1")
    assert failure(path) == "prompts.txt:2: the text must be UTF-8 or GBK, this line is neither; save it as UTF-8"


def test_utf_16_is_recognised_by_its_nul_characters(tmp_path):
    path = text_file(tmp_path, "a lion", "utf-16-le")
    assert failure(path) == "prompts.txt:1: prompt holds a NUL character; if the file is UTF-16, save it as UTF-8"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, newline):
    assert prompts(text_file(tmp_path, newline.join(["a", "b", ""]))) == ["a", "b"]


def test_only_line_ends_separate_prompts(tmp_path):
    odd = "a\u2028b\x85c \N{LION FACE}\v\fd"
    assert prompts(text_file(tmp_path, odd)) == [odd]


@pytest.mark.parametrize(
    "prompt", ["two\nlines", "\N{LION FACE}\u200d\N{CAT FACE}", "x" * 10_000, "", '"', "-n", "${HOME}"]
)
def test_a_json_prompt_is_taken_to_the_letter(tmp_path, prompt):
    assert prompts(json_file(tmp_path, {"prompt": prompt})) == [prompt]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a remark\n", "\ufeff"])
def test_a_file_without_a_prompt_is_refused(tmp_path, text):
    assert (
        failure(text_file(tmp_path, text)) == "prompts.txt must hold at least one prompt, found none; write one a line"
    )


def test_a_missing_file_is_named(tmp_path):
    assert failure(tmp_path / "no.txt") == "cannot read the prompts file no.txt: No such file or directory"


def test_a_folder_is_not_a_prompts_file(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    assert failure(tmp_path / "folder.txt") == "cannot read the prompts file folder.txt: Is a directory"


def test_another_ending_is_refused(tmp_path):
    assert failure(tmp_path / "prompts.csv") == "a prompts file must end in .txt or .jsonl, got prompts.csv"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "step": 5}', "there is no field 'step'; did you mean 'steps'?"),
        ('{"prompt": "a", "qqq": 5}', "there is no field 'qqq'; the fields are prompt, negative_prompt, seed, height, "
         "width, steps, sampler, schedule, guidance_scale, eta, cache_interval, guidance_until, merge_tokens, init, "
         "strength"),
        ('{"prompt": "a", "steps": "5"}', 'steps must be a whole number, got "5"'),
        ('{"prompt": "a", "steps": 5.0}', "steps must be a whole number, got 5.0"),
        ('{"prompt": "a", "seed": true}', "seed must be a whole number, got true"),
        ('{"prompt": "a", "guidance_scale": "high"}', 'guidance_scale must be a number, got "high"'),
        ('{"prompt": 5}', "prompt must be a text, got 5"),
        ('{"prompt": null}', "prompt must be a text, got null"),
        ('{"seed": 5}', "needs the field 'prompt'"),
        ('{"prompt": "a", "prompt": "b"}', "the field 'prompt' stands there twice"),
        ('["a"]', 'must be one JSON object such as {"prompt": "a cat"}, got ["a"]'),
        ("a lion", "must be one JSON object, but Expecting value: line 1 column 1 (char 0)"),
        ('{"prompt": "a", "height": 500}', "height must be a multiple of 8 px, at most 4096, got 500; try 496"),
        ('{"prompt": "a", "steps": 0}', "steps must be in 1..1000, got 0"),
        ('{"prompt": "a", "seed": 4294967296}', "seed must be in 0..4294967295, got 4294967296"),
        ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale must be in 0..100 (1.0 = off), got nan"),
        ('{"prompt": "a", "sampler": "euler"}', "sampler must be one of ddim, plms, dpm_solver, lcm, got 'euler'"),
        ('{"prompt": "a", "schedule": "cubic"}', "schedule must be one of uniform, quad, got 'cubic'"),
        (f'{{"prompt": "a", "eta": 1{"0" * 400}}}', "eta must be a number below 1.8e308, got a whole number with more "
         "digits"),
        ('{"prompt": "a", "eta": 1}', "eta=1.0 needs sampler 'ddim'; 'plms' takes none"),
        ('{"prompt": "a", "cache_interval": 2.0}', "cache_interval must be a whole number, got 2.0"),
        ('{"prompt": "a", "cache_interval": 9}', "cache_interval must be in 1..5 (1 = off), got 9"),
        ('{"prompt": "a", "merge_tokens": 1}', "merge_tokens must be in 0..0.75 (0 = off), got 1.0"),
        ('{"prompt": "a", "guidance_scale": 1, "guidance_until": 0.5}', "guidance_until=0.5 needs guidance; "
         "guidance_scale 1.0 is none"),
        ('{"prompt": "a", "sampler": "lcm", "steps": 60}', "steps must be in 1..50 for sampler 'lcm', got 60; 4 to 8 "
         "are usual"),
        ('{"prompt": "a", "strength": 0.5}', "strength needs the field 'init', the picture to start from"),
        ('{"prompt": "\\ud800"}', "prompt holds half a character at position 0: surrogates not allowed"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_made_is_named_with_its_number(tmp_path, line, message):
    path = text_file(tmp_path, f'{{"prompt": "good"}}\n{line}\n', name="prompts.jsonl")
    assert failure(path) == f"prompts.jsonl:2: {message}"


def test_a_missing_init_image_is_named_with_the_line_that_asks_for_it(tmp_path):
    message = failure(json_file(tmp_path, {"prompt": "a", "init": "no.png"}))
    assert message == f"prompts.jsonl:1: cannot read the init image {tmp_path / 'no.png'}: No such file or directory"


def test_a_bottomless_json_line_is_an_error_and_no_crash(tmp_path):
    message = failure(text_file(tmp_path, "[" * 100_000, name="prompts.jsonl"))
    assert message.startswith("prompts.jsonl:1: must be one JSON object")


def test_an_init_image_that_many_lines_share_is_read_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr("ldm.inference.prompts.sha256_of", lambda path: reads.append(path) or "0" * 64)
    path = json_file(tmp_path, *[{"prompt": "a", "init": "start.png"}] * 3)
    assert len(list(read_prompts(path, TEMPLATE))) == 3
    assert reads == [tmp_path / "start.png"]


def test_prompts_are_read_as_a_stream(tmp_path):
    path = text_file(tmp_path, "a\n" * 1000 + "b")
    stream = read_prompts(path, TEMPLATE)
    assert next(stream).prompt == "a"


def test_reading_prompts_imports_neither_torch_nor_numpy_nor_pillow():
    code = "import sys, ldm.inference.prompts; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
