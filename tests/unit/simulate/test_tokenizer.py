"""The built-in tokenizer, and the recorded one read by the library."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.core.errors import ConfigError
from backend.simulate.engine.tokenizer import Detokenizer, FileTokenizer, GroupTokenizer, natural_length
from tests.fakes.engines import sequence

DATA = Path(__file__).parents[2] / "data" / "engines"
BUILT_IN = GroupTokenizer()
unhurried = settings(deadline=None)


@unhurried
@given(st.text())
def test_every_text_comes_back(text):
    assert BUILT_IN.decode(BUILT_IN.encode(text)) == text


@unhurried
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_texts_with_a_common_beginning_have_common_tokens_up_to_its_last_piece(shared, one, other):
    first, second = BUILT_IN.encode(f"{shared} \n{one}"), BUILT_IN.encode(f"{shared} \n{other}")
    sure = BUILT_IN.encode(shared.rstrip())[:-14]
    assert first[: len(sure)] == second[: len(sure)] == sure


@unhurried
@given(st.text())
def test_a_stream_of_pieces_is_the_whole_text(text):
    stream = Detokenizer(BUILT_IN)
    pieces = [stream.push(token) for token in BUILT_IN.encode(text)]
    assert "".join(pieces) == text.replace("\ufffd", "") or "\ufffd" in text


@unhurried
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=100))
def test_answers_are_deterministic_words_of_one_token_each(prompt):
    request = sequence(prompt)
    for _ in range(5):
        request.tokens.append(BUILT_IN.sample(request))
    answer = request.tokens[len(prompt) :]
    assert BUILT_IN.encode(BUILT_IN.decode(answer)) == answer
    assert BUILT_IN.sample(sequence(prompt)) == answer[0]
    assert 32 <= natural_length(prompt) < 288


def test_ids_fit_32_bits_and_marks_have_no_text():
    tokens = BUILT_IN.chat([{"role": "system", "content": "x"}, {"role": "user", "content": "\U0001f98a"}], add_generation_prompt=True)
    assert max(tokens) < 2**32
    assert BUILT_IN.decode(tokens) == "x\U0001f98a"
    assert [BUILT_IN.piece(token) for token in tokens[:2]] == ["<s>", "<|system|>"]


@pytest.mark.parametrize(
    ("content", "text"),
    [("a", "a"), ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}], "a\nb"), (None, "")],
    ids=["text", "parts", "nothing"],
)
def test_contents_of_messages(content, text):
    tokens = BUILT_IN.chat([{"role": "user", "content": content}], add_generation_prompt=False)
    assert BUILT_IN.decode(tokens) == text


RECORDED = [json.loads((DATA / "http" / f"{name}.json").read_text()) for name in ("tokenize_prompt", "tokenize_chat")]


def test_a_real_tokenizer_gives_the_recorded_tokens():
    tokenizer = FileTokenizer(DATA / "tiny_model" / "tokenizer.json")
    prompt, chat = RECORDED
    assert tokenizer.encode(prompt["request"]["json"]["prompt"]) == prompt["response"]["json"]["tokens"]
    assert tokenizer.chat(chat["request"]["json"]["messages"], add_generation_prompt=True) == chat["response"]["json"]["tokens"]
    assert [tokenizer.piece(token) for token in prompt["response"]["json"]["tokens"]] == prompt["response"]["json"]["token_strs"]


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes((DATA / "tiny_model" / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="chat_template"):
        FileTokenizer(copy)
