"""Make small tokenizers built like those of the real families, and record what transformers makes of them.

    python tests/data/make_tokenizer_goldens.py

Needs transformers, tokenizers and sentencepiece; the tests need only what it writes to
`tests/data/tokenizers/FAMILY/`: the tokenizer's files and `recorded.json`. The vocabularies are learnt
from the sentences below. The chat templates do what the published ones do with messages of text, but in
words of their own: tools, images and default prompts of other lengths are left out. Where a template
has `«` and `»`, the recorded assistant mask was made with `{% generation %}` marks in their place, the
tokenizer itself has none.
"""

import json
import re
import shutil
from pathlib import Path

import sentencepiece
import transformers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PLACE = Path(__file__).parent / "tokenizers"

TEXT = r"""
The day after Monday is Tuesday, and the day before Monday is Sunday.
What is the capital of France? The capital of France is Paris. I'll tell you, don't worry.
Der Tag nach Montag heißt Dienstag. Größe, Straße, Übermut und Äpfel sind deutsche Wörter.
Quel est le jour après lundi ? C'est mardi. L'été est là, où vont les élèves ?
¿Cuál es la capital de España? La capital de España es Madrid. Mañana será otro día.
Qual é o dia depois de segunda-feira? É terça-feira. Não há dúvida, a lição acabou.
Который день после понедельника? Вторник. Столица России — Москва, а Украины — Київ.
Ποια ημέρα είναι μετά τη Δευτέρα; Η Τρίτη. Η πρωτεύουσα της Ελλάδας είναι η Αθήνα.
ما هو اليوم بعد الاثنين؟ الثلاثاء. عاصمة مصر هي القاهرة.
איזה יום בא אחרי יום שני? יום שלישי. בירת ישראל היא ירושלים.
सोमवार के बाद कौन सा दिन आता है? मंगलवार। भारत की राजधानी नई दिल्ली है।
月曜日の次は何曜日ですか。火曜日です。日本の首都は東京です。
星期一之后是星期几？星期二。中国的首都是北京。
월요일 다음은 무슨 요일입니까? 화요일입니다. 대한민국의 수도는 서울입니다.
Thứ hai rồi đến thứ mấy? Thứ ba. Thủ đô của Việt Nam là Hà Nội.
Pazartesiden sonra hangi gün gelir? Salı. Türkiye'nin başkenti Ankara'dır.
There are 7 days in a week, 12 months in a year, 365 days, 1984, 2026-11-25, 3.14159.
def next_day(day):\n    return (day + 1) % 7\n\n\nprint(next_day(6))
You are a helpful assistant. Answer in one sentence, please.
user assistant system model\n\n- one\n\n- two\n\n- three\n\n- four\n\n- five\n\n
"""
LINES = [line.replace("\\n", "\n") for line in TEXT.strip().splitlines()] * 4

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Mirrors the default template of CohereForAI/aya-expanse-8b.
AYA = (
    "{{ bos_token }}{% set turns = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] %}"
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ messages[0]['content'] }}<|END_OF_TURN_TOKEN|>"
    "{% endif %}{% for turn in turns %}"
    "{% if loop.index0 % 2 != (0 if turn['role'] == 'user' else 1) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<|START_OF_TURN_TOKEN|>{% if turn['role'] == 'assistant' %}<|CHATBOT_TOKEN|>"
    "«{{ turn['content'].strip() }}<|END_OF_TURN_TOKEN|>»"
    "{% else %}<|USER_TOKEN|>{{ turn['content'].strip() }}<|END_OF_TURN_TOKEN|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)

# Mirrors that of meta-llama/Llama-3.2-3B-Instruct without tools, which is that of Llama 3.1 but asks for
# today; a tokenizer of ours always says TODAY.
LLAMA3 = """{{- bos_token }}
{%- set date_string = date_string or strftime_now("%d %b %Y") %}
{%- set said = "" %}
{%- set turns = messages %}
{%- if messages[0].role == "system" %}
    {%- set said = messages[0].content | trim %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + said + "<|eot_id|>" }}
{%- for turn in turns %}
    {{- "<|start_header_id|>" + turn.role + "<|end_header_id|>\\n\\n" }}
    {%- if turn.role == "assistant" %}«{{- turn.content | trim + "<|eot_id|>" }}»
    {%- else %}
        {{- turn.content | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

# Mirrors that of google/gemma-2-9b-it.
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}{% if (turn.role == 'user') != (loop.index0 is even) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "{% if turn.role == 'assistant' %}{{ '<start_of_turn>model\n' }}"
    "«{{ turn.content | trim + '<end_of_turn>' }}»{{ '\n' }}"
    "{% else %}{{ '<start_of_turn>' + turn.role + '\n' + turn.content | trim + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Mirrors that of mistralai/Ministral-8B-Instruct-2410: the system text goes to the last turn only,
# and is lost where that is the assistant's.
MINISTRAL = """{%- set turns = messages %}
{%- if messages[0]["role"] == "system" %}
    {%- set said = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for turn in turns %}
    {%- if (turn["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn["role"] == "assistant" %}«{{- turn["content"] + eos_token }}»
    {%- elif loop.last and said is defined %}
        {{- "[INST]" + said + "\\n\\n" + turn["content"] + "[/INST]" }}
    {%- else %}
        {{- "[INST]" + turn["content"] + "[/INST]" }}
    {%- endif %}
{%- endfor %}
"""

# Mirrors that of mistralai/Mixtral-8x22B-Instruct-v0.1: the same, with spaces.
MIXTRAL = MINISTRAL.replace('"[INST]"', '"[INST] "').replace(
    'turn["content"] + eos', '" " + turn["content"] + eos'
)

# Mirrors that of Qwen/Qwen2.5-7B-Instruct without tools.
QWEN25 = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- if turn.role == 'assistant' %}«{{- turn.content + '<|im_end|>' }}»{{- '\\n' }}
    {%- else %}
        {{- turn.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Mirrors that of Qwen/Qwen3-8B without tools: what was thought is kept after the last question only.
QWEN3 = """{%- set ns = namespace(last=messages | length - 1, found=false) %}
{%- for turn in messages[::-1] %}
    {%- if not ns.found and turn.role == "user" %}
        {%- set ns.found = true %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- if turn.role == "assistant" %}
        {%- set content = turn.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set content = turn.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set thought = turn.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}«{{- '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>' }}»
        {%- else %}«{{- content + '<|im_end|>' }}»
        {%- endif %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# A template with marks of its own, which leave the end of the turn out.
MARKED = """{% for turn in messages %}
{{ '<|im_start|>' + turn.role }}
    {% if turn.role == 'assistant' %}
        {% generation %}
            {{- turn.content -}}
        {% endgeneration %}
<|im_end|>
    {% else %}
{{ turn.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


TODAY = "26 Jul 2024"


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


QUESTION = ("user", "Wie heißt der Tag nach Montag?")
CHATS = {
    "question": chat(QUESTION),
    "system": chat(("system", "Answer in one sentence."), QUESTION),
    "follow-up": chat(QUESTION, ("assistant", "Dienstag."), ("user", "I'LL ask again: and 2026?")),
    "whole": chat(
        QUESTION, ("assistant", "Dienstag."), ("user", "Et après ?"), ("assistant", "Mercredi.")
    ),
    "system and whole": chat(("system", "Kurz!"), QUESTION, ("assistant", "Dienstag.")),
    "spaces": chat(
        ("user", "  \n two  spaces\tand tabs \r\n\n"),
        ("assistant", "\n\nfirst\n\n\n  second \n"),
        ("user", "\n\u00a0end\u3000 "),
    ),
    "system with spaces": chat(("system", " \nKurz. \n"), ("user", "\n\nJa ")),
    "scripts": chat(
        ("user", "Cafe\u0301 Å \u1e9b\u0323 ﬁ ½ 👩‍👩‍👧 🇫🇷 𠮷野家 עברית\u200f العربية"),
        ("assistant", "월요일 다음은 火曜日。सोमवार ▁ \ue000\U000f0000 \ufeff"),
        ("user", "Київ — столиця; Αθήνα."),
    ),
    "empty": chat(("user", ""), ("assistant", ""), ("user", "?")),
    "code": chat(
        ("user", "def f(x):\n    return x**2  # 1234567 3.14159\n\n\nprint(f(10))"),
        ("assistant", "```py\nprint(f(10))\n```"),
    ),
    "thinking": chat(
        QUESTION,
        ("assistant", "<think>\nMontag, dann\n</think>\n\nDienstag."),
        ("user", "<tool_call> und <b>dann</b>?"),
        ("assistant", "<think>\nnoch einer\n</think>\n\nMittwoch."),
    ),
}
PLAIN = [
    "Hello world",
    " Hello  world \n",
    "",
    "I'll say 3.14159 in 1984!",
    *(turn["content"] for name in ("scripts", "code", "spaces") for turn in CHATS[name]),
]


def byte_level(words, specials_first, specials_last, size, *, normalizer=None, **model):
    """Byte-level BPE: words by a pattern or a pre-tokenizer, special tokens before and after."""
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=specials_first,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    add(tokenizer, specials_last)
    return tokenizer


def add(tokenizer, tokens):
    for token in tokens:
        special = not token.startswith(("<tool", "</tool", "<think", "</think")) and token != "\n"
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])


def pattern(words):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_fallback(specials, size, pre_tokenizer, normalizer=None):
    """BPE over characters, with pieces for the 256 bytes right after the special tokens."""
    trained = Tokenizer(models.BPE())
    if normalizer:
        trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*specials, *bytes_],
            show_progress=False,
            max_token_length=12,
        ),
    )
    content = json.loads(trained.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in specials]
    content["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def decoder_of(tokenizer):
    """`added_tokens_decoder` of tokenizer_config.json."""
    return {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in tokenizer.get_added_tokens_decoder().items()
    }


def aya():
    first = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>"]
    turns = ["START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"]
    tokenizer = byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        first,
        [f"<|{name}_TOKEN|>" for name in turns],
        640,
        normalizer=normalizers.NFC(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<BOS_TOKEN>:0 $A:0", special_tokens=[("<BOS_TOKEN>", 5)]
    )
    config = {
        "tokenizer_class": "CohereTokenizer",
        "add_bos_token": True,
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "unk_token": None,
    }
    named = [("default", AYA), ("rag", "{{ raise_exception('not the default') }}")]
    return tokenizer, config, AYA, [{"name": name, "template": text} for name, text in named], {}


def llama3():
    names = ["begin_of_text", "end_of_text", "finetune_right_pad_id", "start_header_id"]
    names += ["end_header_id", "eom_id", "eot_id", "python_tag"]
    tokenizer = byte_level(
        pattern(LLAMA3_WORDS), [], [f"<|{name}|>" for name in names], 640, ignore_merges=True
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": True,
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
    }
    ends = [tokenizer.token_to_id(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id")]
    return tokenizer, config, LLAMA3, LLAMA3, {"eos_token_id": ends}


def gemma2():
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = byte_fallback(
        first,
        1000,
        pre_tokenizers.Split(" ", behavior="merged_with_previous"),
        normalizers.Replace(" ", "▁"),
    )
    add(tokenizer, ["\n"])
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return tokenizer, config, GEMMA2, GEMMA2, {"eos_token_id": [1, 5]}


def ministral():
    first = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"]
    tokenizer = byte_level(pattern(TEKKEN_WORDS), first, [], 640, ignore_merges=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": {"__type": "AddedToken", "content": "<unk>", "special": True},
    }
    return tokenizer, config, MINISTRAL, MINISTRAL, {"eos_token_id": 2}


def mixtral():
    tokenizer = byte_fallback(
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        1000,
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False),
    )
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return tokenizer, config, MIXTRAL, MIXTRAL, {"eos_token_id": 2}


def qwen(template):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    tokenizer = byte_level(
        pattern(QWEN_WORDS),
        [],
        [*tokens, "<think>", "</think>"],
        640,
        normalizer=normalizers.NFC(),
    )
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return tokenizer, config, template, template, {"eos_token_id": ends}


def write(place, tokenizer, config, template, generation, *, as_file):
    place.mkdir(parents=True)
    content = json.loads(tokenizer.to_str())
    dump(place / "tokenizer.json", content)
    config = {**config, "added_tokens_decoder": decoder_of(tokenizer)}
    config = {name: value for name, value in config.items() if value is not None}
    if as_file:
        (place / "chat_template.jinja").write_text(template, "utf-8")
    else:
        config["chat_template"] = template
    dump(place / "tokenizer_config.json", config)
    if generation:
        dump(place / "generation_config.json", generation)


def dump(path, content):
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=False)
    path.write_text(text + "\n", "utf-8")


def record(place, template):
    """Record what transformers makes of the conversations that the template takes, and of plain text."""
    loaded = transformers.AutoTokenizer.from_pretrained(place)
    with_marks = template.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
    chats = []
    for name, messages in CHATS.items():
        both = {}
        try:
            for opened in (True, False):
                both[opened] = loaded.apply_chat_template(
                    messages, add_generation_prompt=opened, return_dict=False, date_string=TODAY
                )
        except Exception as error:
            chats.append({"name": name, "messages": messages, "error": str(error)})
            continue
        entry = {"name": name, "messages": messages, "opened": both[True], "ids": both[False]}
        if "generation %}" in with_marks:
            out = loaded.apply_chat_template(
                messages,
                chat_template=with_marks,
                return_assistant_tokens_mask=True,
                date_string=TODAY,
            )
            assert out["input_ids"] == entry["ids"], (place, name)
            entry["mask"] = "".join(map(str, out["assistant_masks"]))
        chats.append(entry)
    texts = []
    for text in PLAIN:
        ids = loaded.encode(text, add_special_tokens=False)
        texts.append([text, ids, loaded.decode(ids, skip_special_tokens=True)])
    dump(place / "recorded.json", {"chats": chats, "texts": texts})


def mt5():
    """A unigram sentencepiece model as mT5's, as it is and as transformers turns it into JSON."""
    place = PLACE / "mt5"
    place.mkdir(parents=True)
    # A few rules of the 240 KB that mT5 has: ligatures, fractions, wide and odd spaces.
    rules = place / "rules.tsv"
    rules.write_text("FB01\t66 69\nBD\t31 2044 32\n3000\t20\nA0\t20\n9\t20\nA\t20\nD\t20\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.replace("\n", " ") for line in LINES]),
        model_prefix=str(place / "spiece"),
        model_type="unigram",
        vocab_size=560,
        character_coverage=1.0,
        normalization_rule_tsv=str(rules),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
    )
    rules.unlink()
    (place / "spiece.vocab").unlink()
    # Where it was made is nobody's business.
    model = ModelProto.FromString((place / "spiece.model").read_bytes())
    model.trainer_spec.ClearField("model_prefix")
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    (place / "spiece.model").write_bytes(model.SerializeToString())
    config = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    dump(place / "tokenizer_config.json", config)
    loaded = transformers.AutoTokenizer.from_pretrained(place)
    texts = [[text, loaded.encode(text)] for text in PLAIN]
    dump(place / "recorded.json", {"texts": texts})


def main():
    for made in (
        "aya",
        "llama3",
        "gemma2",
        "ministral",
        "mixtral",
        "qwen2.5",
        "qwen3",
        "marked",
        "mt5",
    ):
        shutil.rmtree(PLACE / made, ignore_errors=True)
    families = {
        "aya": aya(),
        "llama3": llama3(),
        "gemma2": gemma2(),
        "ministral": ministral(),
        "mixtral": mixtral(),
        "qwen2.5": qwen(QWEN25),
        "qwen3": qwen(QWEN3),
        "marked": qwen(MARKED),
    }
    for name, (tokenizer, config, template, written, generation) in families.items():
        plain = json.loads(re.sub("[«»]", "", json.dumps(written, ensure_ascii=False)))
        as_file = name in ("ministral", "qwen3")
        write(PLACE / name, tokenizer, config, plain, generation, as_file=as_file)
        record(PLACE / name, template)
    mt5()


if __name__ == "__main__":
    main()
