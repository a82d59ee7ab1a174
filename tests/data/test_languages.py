"""The 23 languages, their scripts and clusters."""

import pytest

from aya_jax.data.languages import (
    LANGUAGES,
    check_language,
    language_clusters,
    language_of,
    script_share,
)
from aya_jax.errors import AyaError

# "The weather is fine today" or near it, written by hand; no text shares its script's column.
SENTENCES = {
    "ar": ("Arab", "الطقس جميل اليوم"),
    "cs": ("Latn", "Dnes je hezké počasí"),
    "de": ("Latn", "Heute ist schönes Wetter"),
    "el": ("Grek", "Σήμερα έχει ωραίο καιρό"),
    "en": ("Latn", "The weather is fine today"),
    "es": ("Latn", "Hoy hace buen tiempo, mañana también"),
    "fa": ("Arab", "امروز هوا خوب است"),
    "fr": ("Latn", "Il fait beau aujourd’hui, là-bas aussi"),
    "he": ("Hebr", "מזג האוויר נאה היום"),
    "hi": ("Deva", "आज मौसम अच्छा है"),
    "id": ("Latn", "Hari ini cuacanya bagus"),
    "it": ("Latn", "Oggi il tempo è bello"),
    "ja": ("Jpan", "今日は天気がいいです。カメラ"),
    "ko": ("Kore", "오늘은 날씨가 좋습니다"),
    "nl": ("Latn", "Het is vandaag mooi weer"),
    "pl": ("Latn", "Dziś jest ładna pogoda"),
    "pt": ("Latn", "Hoje o tempo está bom, amanhã não"),
    "ro": ("Latn", "Astăzi vremea e frumoasă și caldă"),
    "ru": ("Cyrl", "Сегодня хорошая погода"),
    "tr": ("Latn", "Bugün hava güzel, değil mi"),
    "uk": ("Cyrl", "Сьогодні гарна погода, чи не так"),
    "vi": ("Latn", "Hôm nay thời tiết đẹp"),
    "zh": ("Hani", "今天天气很好"),
}


def test_there_are_the_23_of_aya_expanse():
    assert set(LANGUAGES) == set(SENTENCES) and len(SENTENCES) == 23
    rtl = {code for code, language in LANGUAGES.items() if language.direction == "rtl"}
    assert rtl == {"ar", "fa", "he"}
    assert {code: language.script for code, language in LANGUAGES.items()} == {
        code: script for code, (script, _) in SENTENCES.items()
    }


@pytest.mark.parametrize("code", sorted(SENTENCES))
def test_a_sentence_is_in_the_script_of_its_language_and_in_no_other(code):
    script, text = SENTENCES[code]
    for other in {language.script for language in LANGUAGES.values()}:
        share = script_share(f"{text} 12, 3.5!", other)
        if other == script:
            assert share == 1.0
        elif {script, other} == {"Hani", "Jpan"}:
            assert 0 < share <= 1.0  # Japanese is written with Chinese characters too.
        else:
            assert share == 0.0


def test_a_share_counts_letters_alone():
    assert script_share("abcд", "Latn") == 0.75
    assert script_share("", "Latn") == script_share("12 + 3 = 15!", "Latn") == 0.0


def test_variants_are_the_language_before_the_hyphen():
    assert check_language("zh-Hant") == "zh-Hant"
    assert language_of("zh-Hant").name == "Chinese" and language_of("pt-BR").code == "pt"


@pytest.mark.parametrize("code", ["", "DE", "d", "de_DE", "de-", "-de", "xx", "deutsch", None, 3])
def test_what_is_no_language_is_told(code):
    with pytest.raises(AyaError) as error:
        check_language(code, "here:3")
    told = str(error.value)
    assert told.startswith(f"here:3: unknown language {code!r}; ")
    assert "did you mean" in told or "known are: ar, cs" in told


def test_clusters_share_what_is_shared():
    groups = {"west": ["de", "en"], "east": ["ru", "uk"], "alone": []}
    clusters = language_clusters(shared=["en", "fr"], groups=groups)
    assert clusters == {
        "west": ("de", "en", "fr"),
        "east": ("en", "fr", "ru", "uk"),
        "alone": ("en", "fr"),
    }
    with pytest.raises(AyaError, match="de is in both west and east"):
        language_clusters(groups={"west": ["de"], "east": ["ru", "de"]})
    with pytest.raises(AyaError, match="language_clusters: west: unknown language 'dee'"):
        language_clusters(groups={"west": ["dee"]})
    with pytest.raises(AyaError, match="unknown language 'enn'"):
        language_clusters(shared=["enn"], groups={"west": ["de"]})
