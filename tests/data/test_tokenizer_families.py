"""Tokenizers built like those of the families: the ids, masks and texts that transformers made of them.

See make_tokenizer_goldens.py. Where transformers is installed the same is compared with it live.
"""

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from aya_jax.checkpoints.model_directory import copy_tokenizer
from aya_jax.data.examples import pack, pad, text_examples, tokenize
from aya_jax.data.tokenizer import Tokenizer
from aya_jax.errors import AyaError

PLACE = Path(__file__).parent / "tokenizers"
# The ids by which a family is known: begin, close of an answer, padding, ends of generation.
IDS = {
    "aya": (5, 641, 0, (641,)),
    "llama3": (640, 646, 646, (646, 641, 645)),
    "gemma2": (2, 5, 0, (5, 1)),
    "ministral": (1, 2, 2, (2,)),
    "mixtral": (1, 2, 2, (2,)),
    "qwen2.5": (None, 642, 640, (642, 640)),
    "qwen3": (None, 642, 640, (642, 640)),
    "marked": (None, 642, 640, (642, 640)),
}
LOADED = {name: Tokenizer.load(PLACE / name) for name in IDS}
RECORDED = {name: json.loads((PLACE / name / "recorded.json").read_text("utf-8")) for name in IDS}
CHATS = [
    pytest.param(name, chat, id=f"{name}: {chat['name']}")
    for name in IDS
    for chat in RECORDED[name]["chats"]
    if "ids" in chat
]
# With the system text in the last question only, an answer's rendering tells nothing of its prompt.
LOST_SYSTEM = {("ministral", "system and whole"), ("mixtral", "system and whole")}


def spans_of(mask):
    """The runs of ones in a string of zeros and ones."""
    places = []
    for bit, run in itertools.groupby(enumerate(mask), key=lambda pair: pair[1]):
        numbers = [number for number, _ in run]
        if bit == "1":
            places.append((numbers[0], numbers[-1] + 1))
    return places


@pytest.mark.parametrize("name", IDS)
def test_the_tokens_that_a_family_is_known_by(name):
    loaded = LOADED[name]
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.stop_ids) == IDS[name]
    known = json.loads((PLACE / name / "tokenizer.json").read_text("utf-8"))
    added = [token["id"] for token in known["added_tokens"]]
    assert loaded.vocab_size == max(*added, *known["model"]["vocab"].values()) + 1


@pytest.mark.parametrize(("name", "chat"), CHATS)
def test_conversations_have_the_ids_of_transformers(name, chat):
    for opened, ids in ((True, chat["opened"]), (False, chat["ids"])):
        assert LOADED[name].encode_chat(chat["messages"], add_generation_prompt=opened) == ids


@pytest.mark.parametrize(("name", "chat"), CHATS)
def test_answers_are_where_generation_marks_put_them(name, chat):
    """The recorded masks are of templates with marks; but for one family the loaded have none."""
    if (name, chat["name"]) in LOST_SYSTEM:
        with pytest.raises(AyaError, match="the turns before turn 3 otherwise"):
            LOADED[name].assistant_spans(chat["messages"])
    else:
        assert LOADED[name].assistant_spans(chat["messages"]) == spans_of(chat["mask"])


@pytest.mark.parametrize(
    ("name", "chat"),
    [case for case in CHATS if case.values[1]["messages"][-1]["role"] == "assistant"],
)
def test_a_prompt_with_its_answer_is_the_conversation_to_the_end_of_turn(name, chat):
    *turns, last = chat["messages"]
    loaded = LOADED[name]
    if (name, chat["name"]) in LOST_SYSTEM:
        with pytest.raises(AyaError, match="leave out the system turn"):
            loaded.encode_answer(turns, last["content"])
        return
    prompt, answer = loaded.encode_answer(turns, last["content"])
    assert prompt == loaded.encode_chat(turns)
    assert answer[-1] == loaded.eos_id and loaded.eos_id not in answer[:-1]
    whole = prompt + answer
    assert chat["ids"][: len(whole)] == whole
    assert not chat["mask"][len(whole) :].count("1")


@pytest.mark.parametrize("name", IDS)
def test_plain_text_goes_there_and_back_as_in_transformers(name):
    for text, ids, back in RECORDED[name]["texts"]:
        assert LOADED[name].encode(text) == ids
        assert LOADED[name].decode(ids) == back


def refused(name):
    return [chat for chat in RECORDED[name]["chats"] if "error" in chat]


def test_a_conversation_that_a_template_refuses_is_told_with_its_turn():
    chats = refused("gemma2")
    assert len(chats) == 3 and not any(refused(name) for name in IDS if name != "gemma2")
    for chat in chats:
        with pytest.raises(AyaError) as error:
            LOADED["gemma2"].encode_chat(chat["messages"])
        assert chat["error"] in str(error.value) and "(system)" in str(error.value)
        assert "\n" not in str(error.value)
    twice = [{"role": "user", "content": "a"}] * 2
    with pytest.raises(AyaError, match=r"turn 2 of 2 \(user\): user and assistant must take turns"):
        LOADED["aya"].encode_chat(twice)


# What a user types is text.


def special(name):
    """The special tokens of a family, from its file alone: texts by ids."""
    content = json.loads((PLACE / name / "tokenizer.json").read_text("utf-8"))
    return {token["id"]: token["content"] for token in content["added_tokens"] if token["special"]}


SPECIAL = {name: special(name) for name in IDS}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(IDS)),
    parts=st.lists(
        st.one_of(
            st.integers(0, 99), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
        ),
        max_size=8,
    ),
)
def test_typed_special_tokens_are_cut_like_any_text(name, parts):
    """As the tokenizers library cuts text when it is told to see no special token in it."""
    texts = sorted(SPECIAL[name].values())
    text = "".join(p if isinstance(p, str) else texts[p % len(texts)] for p in parts)
    ids = LOADED[name].encode(text)
    engine = tokenizers.Tokenizer.from_file(str(PLACE / name / "tokenizer.json"))
    engine.encode_special_tokens = True
    assert ids == engine.encode(text, add_special_tokens=False).ids
    assert {SPECIAL[name].get(i) for i in ids} <= {None, "<unk>"}


@pytest.mark.parametrize("name", IDS)
def test_typing_special_tokens_opens_and_closes_no_turn(name):
    """Turns written by hand: what the template wrote before, between and after is unchanged."""
    loaded = LOADED[name]
    special = SPECIAL[name]

    def frame(content):
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        ids = loaded.encode_chat([*turns, turns[0]])
        return ids, [i for i in ids if i in special]

    typed = f"a{''.join(special.values())}b\ue000 \U000f0000{special[loaded.eos_id]}"
    ids, frame_typed = frame(typed)
    assert frame_typed == frame("a b")[1]
    assert loaded.decode(ids).count(typed) == 3
    # It is learnt as text as well, and the answer's place is found.
    turn = [{"role": "user", "content": typed}]
    prompt, answer = loaded.encode_answer(turn, typed)
    assert prompt == loaded.encode_chat(turn) and answer.count(loaded.eos_id) == 1
    assert loaded.decode(answer).strip().removeprefix("<think>\n\n</think>\n\n") == typed


def test_a_prompt_is_no_other_where_a_piece_reaches_into_the_answer():
    """Qwen's "\\n" before the answer and one that the answer begins with are one piece together."""
    loaded = LOADED["qwen2.5"]
    turns = [{"role": "user", "content": "a"}]
    (joined,) = loaded.encode("\n\n")
    whole = loaded.encode_chat([*turns, {"role": "assistant", "content": "\nb"}])
    assert joined in whole and whole[: len(loaded.encode_chat(turns))] != loaded.encode_chat(turns)
    # An answer is stripped, so that it does not happen; a template may write such an answer all the same.
    config = json.loads(loaded.files["tokenizer_config.json"])
    template = config["chat_template"].replace(
        "turn.content + '<|im_end|>' }}{{-", "'\\n' + turn.content + '<|im_end|>' }}{{-"
    )
    assert template != config["chat_template"]
    files = {
        **loaded.files,
        "tokenizer_config.json": json.dumps({**config, "chat_template": template}).encode(),
    }
    prompt, answer = Tokenizer(files).encode_answer(turns, "b")
    assert prompt == loaded.encode_chat(turns)
    assert answer == [*loaded.encode("\nb"), loaded.eos_id]


def test_an_answer_begins_no_text_where_it_is_cut_from_its_prompt():
    """The space that a prompt ends with and the answer are one piece together in a SentencePiece BPE."""
    files = with_config(
        "mixtral",
        chat_template="{{ messages[0].content }}:{{ ' ' }}"
        "{% for turn in messages[1:] %}{{ turn.content + eos_token }}{% endfor %}",
    )
    prompt, answer = Tokenizer(files).encode_answer([{"role": "user", "content": "Tag"}], "day")
    pieces = json.loads(files["tokenizer.json"])["model"]["vocab"]
    texts = {i: text for text, i in pieces.items()}
    assert "".join(texts[i] for i in prompt) == "▁Tag:▁"
    assert "".join(texts[i] for i in answer) == "day</s>"


def test_merges_that_spell_a_special_token_do_not_make_it():
    vocab = {text: i for i, text in enumerate(["a", "<", "s", ">", "<s", "<s>"])}
    content = {
        "model": {"type": "BPE", "vocab": vocab, "merges": [["<", "s"], ["<s", ">"]]},
        "added_tokens": [
            {"id": 5, "content": "<s>", "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        ],
    }
    config = {"eos_token": "<s>", "chat_template": "{{ messages[0].content }}<s>"}
    spelt = Tokenizer(
        {
            "tokenizer.json": json.dumps(content).encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
    assert spelt.encode("a<s>a") == [0, 4, 3, 0]
    assert spelt.encode_chat([{"role": "user", "content": "<s>"}]) == [4, 3, 5]


def test_a_sentencepiece_model_of_another_family_writes_its_turn_tokens_by_the_template_alone():
    """Gemma's model finds its turn tokens in any text, and Llama's puts a space before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["aba ab baa"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=270,
        byte_fallback=True,
        user_defined_symbols=["<turn>"],
        minloglevel=2,
    )
    special = {"content": "<turn>", "special": True}
    config = {
        "added_tokens_decoder": {"3": special, "300": {**special, "content": "<end>"}},
        "chat_template": "{{ bos_token }}{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}",
    }
    loaded = Tokenizer(
        {
            "tokenizer.model": model.getvalue(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
    assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (1, 300, 301)
    assert loaded.stop_ids == (300, 2)
    bytes_of = [4 + byte for byte in b"<turn>"]
    space, *typed = loaded.encode("<turn>")
    assert typed == bytes_of
    turns = [{"role": "user", "content": text} for text in ("<turn>", "<end>")]
    ends = [4 + byte for byte in b"<end>"]
    assert loaded.encode_chat(turns) == [1, 3, *bytes_of, 300, 3, *ends, 300]
    assert loaded.decode([1, 3, space, *bytes_of, 300, 299, 301]) == "<turn>"


# Files.


@pytest.mark.parametrize("name", [*IDS, "mt5", "before"])
def test_a_copied_and_a_saved_tokenizer_is_the_same(name, tmp_path):
    loaded = Tokenizer.load(PLACE / name)
    for place, fill in (
        (tmp_path / "copied", lambda to: copy_tokenizer(PLACE / name, to)),
        (tmp_path / "saved", loaded.save),
    ):
        place.mkdir()
        fill(place)
        names = {file.name for file in (PLACE / name).iterdir()} - {"recorded.json", "ids.json"}
        assert {file.name for file in place.iterdir()} == names
        again = Tokenizer.load(place)
        assert again.files == loaded.files and again.stop_ids == loaded.stop_ids
        assert again.encode("Montag 7") == loaded.encode("Montag 7")


def with_config(name, **changes):
    """The files of a family with another tokenizer_config.json."""
    files = dict(LOADED[name].files)
    config = {**json.loads(files["tokenizer_config.json"]), **changes}
    config = {field: value for field, value in config.items() if value is not None}
    return {**files, "tokenizer_config.json": json.dumps(config).encode()}


def test_tokenizer_json_is_taken_before_a_sentencepiece_model():
    model = (PLACE / "before" / "tokenizer.model").read_bytes()
    both = Tokenizer({**LOADED["aya"].files, "tokenizer.model": model})
    assert both.encode("Montag 7") == LOADED["aya"].encode("Montag 7")


def test_older_files_say_the_same():
    """special_tokens_map.json and added_tokens.json, where the configuration has none of it."""
    names = {
        "eos_token": {"content": "<|eot_id|>", "lstrip": False},
        "bos_token": "<|begin_of_text|>",
    }
    files = with_config("llama3", added_tokens_decoder=None, bos_token=None, eos_token=None)
    files["special_tokens_map.json"] = json.dumps(
        {**names, "pad_token": "<|finetune_right_pad_id|>"}
    ).encode()
    old = Tokenizer({**files, "added_tokens.json": b'{"<|reserved|>": 648}'})
    assert (old.bos_id, old.eos_id, old.pad_id) == (640, 646, 642)
    chat = RECORDED["llama3"]["chats"][0]
    assert old.encode_chat(chat["messages"]) == chat["opened"]
    assert old.vocab_size == 649 and old.encode("<|reserved|>") == [648]


def test_a_template_file_counts_more_than_the_configuration():
    files = {**LOADED["aya"].files, "chat_template.jinja": b"{{ messages[0].content }}!"}
    turn = [{"role": "user", "content": "Montag"}]
    assert Tokenizer(files).encode_chat(turn) == LOADED["aya"].encode("Montag!")


def test_without_a_template_only_plain_text_is_encoded():
    files = with_config("aya", chat_template=[{"name": "rag", "template": "?"}])
    plain = Tokenizer(files)
    assert plain.encode("Montag") == LOADED["aya"].encode("Montag")
    assert plain.eos_id == 641
    turn = [{"role": "user", "content": "Montag"}]
    for ask in (plain.encode_chat, lambda turns: plain.encode_answer(turns, "a")):
        with pytest.raises(
            AyaError, match=r"has no chat template; write one to chat_template.jinja"
        ):
            ask(turn)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "{{ messages[0].content }}{% for m in messages[1:] %}A:{{ m.content }}\n{% endfor %}",
            "no special",
        ),
        (
            "{{ messages | length }}{{ messages[-1].content }}<|im_end|>",
            "otherwise than the prompt",
        ),
    ],
)
def test_a_template_that_cannot_tell_the_answer_is_refused(template, told):
    loaded = Tokenizer(with_config("qwen2.5", chat_template=template))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    loaded.encode_chat(turns)
    with pytest.raises(AyaError, match=told):
        loaded.encode_answer(turns[:1], "b")
    with pytest.raises(AyaError):
        loaded.assistant_spans(turns)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0].role.upper.__globals__ }}{{ 1 + '' }}", "unsafe|unsupported"),
        ("{{ ''.__class__.__mro__[1].__subclasses__()[0] }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}a{% endfor %}", "[Rr]ange"),
        ("{{ messages.append(1) }}", "not callable|unsafe|has no|undefined"),
        ("{{ undefined.field }}", "undefined"),
        ("{{ raise_exception('no\nnewlines') }}", "no newlines"),
    ],
)
def test_a_template_that_fails_is_told_in_a_line(template, told):
    loaded = Tokenizer(with_config("qwen2.5", chat_template=template))
    with pytest.raises(AyaError, match=told) as error:
        loaded.encode_chat([{"role": "user", "content": "a"}])
    assert "turn 1 of 1 (user)" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        (
            "tokenizer.json",
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        ),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": "x"}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {}, "chat_template": ["x"]}'),
        ("tokenizer_config.json", b"{}"),
        ("generation_config.json", b"["),
        ("generation_config.json", b'{"eos_token_id": "x"}'),
        ("chat_template.jinja", b"{% if %}"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_damaged_files_of_a_family_are_told(name, content, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(PLACE / "ministral", place)
    (place / name).write_bytes(content)
    if (name, content) == ("tokenizer_config.json", b"{}"):
        (place / "chat_template.jinja").unlink()
    with pytest.raises(AyaError, match="the tokenizer cannot be read") as error:
        Tokenizer.load(place)
    assert str(place) in str(error.value) and "\n" not in str(error.value)


# Rows.


def test_every_answer_of_a_conversation_is_learnt():
    for name in IDS:
        whole = next(c for c in RECORDED[name]["chats"] if c["name"] == "whole")
        record = {
            "messages": whole["messages"],
            "prompt": whole["messages"][-2]["content"],
            "completion": whole["messages"][-1]["content"],
        }
        example = tokenize(record, LOADED[name], field="completion", max_length=400)
        rows = pad([example], length=400)
        learnt = "".join(map(str, rows.mask[0].astype(int)))
        size = len(example.prompt) + len(example.completion)
        assert rows.tokens[0, :size].tolist() == whole["ids"][:size]
        if name == "marked":  # its marks leave the end of the turn out, but the last one is learnt
            first, last = spans_of(whole["mask"])
            assert spans_of(learnt) == [first, (last[0], last[1] + 1)]
        elif name == "qwen3":  # of the last answer the empty thought is learnt with it
            assert spans_of(learnt) == spans_of(whole["mask"])
        else:
            assert spans_of(learnt) == spans_of(whole["mask"])


def test_a_record_that_a_template_refuses_is_told_by_its_name():
    record = {
        "id": "the-one",
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        "prompt": "b",
        "completion": "c",
    }
    with pytest.raises(AyaError, match=r"record 'the-one': .*System role not supported"):
        tokenize(record, LOADED["gemma2"], field="completion", max_length=99)


def test_plain_text_needs_no_begin_token():
    loaded = LOADED["qwen3"]
    rows = pack(text_examples(["Montag"], loaded, length=12), length=12)
    ids = [*loaded.encode("Montag"), loaded.eos_id]
    assert rows.tokens[0, : len(ids)].tolist() == ids
    assert rows.mask[0].tolist() == [False, *[True] * (len(ids) - 1), *[False] * (12 - len(ids))]


# Encoder-decoders.


def test_an_encoder_decoder_takes_the_text_as_it_is():
    loaded = Tokenizer.load(PLACE / "mt5")
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.stop_ids) == (None, 1, 0, (1,))
    turns = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Was ist das?"}]
    prompt, answer = loaded.encode_answer(turns, " Montag ")
    assert prompt == loaded.encode_chat(turns) == [*loaded.encode("Kurz.\nWas ist das?"), 1]
    assert answer == [*loaded.encode("Montag"), 1]
    assert loaded.assistant_spans([*turns, {"role": "assistant", "content": "a"}]) == []


def test_sentencepiece_cuts_as_transformers_but_has_bytes_for_what_is_unknown():
    loaded = Tokenizer.load(PLACE / "mt5")
    unknown, byte_ids = 2, range(3, 259)
    assert loaded.encode("☃")[1:] == [3 + byte for byte in "☃".encode()]
    recorded = json.loads((PLACE / "mt5" / "recorded.json").read_text("utf-8"))["texts"]
    # The character that sentencepiece writes for a space is no space where it is typed in transformers.
    for text, ids in (pair for pair in recorded if "▁" not in pair[0]):
        runs = itertools.groupby(
            [*loaded.encode(text), 1], key=lambda i: unknown if i in byte_ids else i
        )
        ours = [i for key, run in runs for i in ([key] if key == unknown else run)]
        assert ours == ids
        if unknown not in ids:
            assert loaded.decode(ids) == " ".join(text.split())


# Live.


@pytest.mark.parametrize("name", [*IDS, "ours"])
def test_the_same_as_transformers_now(name, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    place = tmp_path if name == "ours" else PLACE / name
    theirs, loaded = transformers.AutoTokenizer.from_pretrained(place), Tokenizer.load(place)
    theirs.save_pretrained(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.bos_id, again.eos_id, again.pad_id) == (
        loaded.bos_id,
        loaded.eos_id,
        loaded.pad_id,
    )
    for chat in RECORDED["qwen2.5" if name == "ours" else name]["chats"]:
        for opened in (True, False):
            if "ids" in chat:
                ids = theirs.apply_chat_template(
                    chat["messages"],
                    add_generation_prompt=opened,
                    return_dict=False,
                    date_string="26 Jul 2024",
                )
                for mine in (loaded, again):
                    assert mine.encode_chat(chat["messages"], add_generation_prompt=opened) == ids
