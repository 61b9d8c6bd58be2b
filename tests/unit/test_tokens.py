"""About how many tokens texts have, over what real tokenizers make of them."""

from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import count_tokens_approximately

from chancellor import Catalog, Context, EngineOptions, ModelSpec, errors
from chancellor.analyzers import rules
from chancellor.routing import Router
from chancellor.tokens import estimate, tokens_of
from tests.vocabularies import demo_tokenizer

CHINESE = "潮汐是海水在月球和太阳引力作用下产生的周期性涨落现象。请详细解释潮汐的形成原因。"
TEXTS = {
    "English": "It was the best of times, and nobody could say how the tides of the sea work without a model.",
    "German": "Gezeiten entstehen durch die Anziehungskraft des Mondes. Über größere Zeiträume ändert sich die Höhe.",
    "Polish": "Pływy morskie są wywoływane przez przyciąganie Księżyca. Ich wysokość zależy od głębokości wody.",
    "Vietnamese": "Thủy triều là hiện tượng nước biển, nước sông lên xuống trong một chu kỳ thời gian.",
    "Chinese": CHINESE,
    "Japanese": "潮汐とは、月や太陽の引力によって海面が周期的に上下する現象である。カタカナ、ひらがな、漢字。",
    "Korean": "조석은 달과 태양의 인력에 의해 바닷물의 높이가 주기적으로 변하는 현상이다.",
    "Russian": "Приливы и отливы — периодические колебания уровня моря, вызванные притяжением Луны и Солнца.",
    "Arabic": "المد والجزر ظاهرة طبيعية تحدث بسبب جاذبية القمر والشمس، وتؤثر في النظم البيئية الساحلية.",
    "Hindi": "ज्वार-भाटा समुद्र के जल स्तर का आवधिक उतार-चढ़ाव है, जो चंद्रमा और सूर्य के कारण होता है।",
    "Thai": "น้ำขึ้นน้ำลงเป็นปรากฏการณ์ที่เกิดจากแรงดึงดูดของดวงจันทร์และดวงอาทิตย์",
    "emoji": "\U0001f600\U0001f680\U0001f389\U0001f44d\U0001f525\U0001f30a\U0001f319\u2705\u2728\U0001f916",
    "digits": "31415926535897932384626433832795",
    "code": Path(__file__).read_text(encoding="utf-8").split("CHINESE")[0],
    "JSON": '[{"id": 1, "name": "item_1", "price": 1.37}, {"id": 2, "name": "item_2", "price": 2.74}]',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_it_is_hardly_ever_too_low(kind: str) -> None:
    real = len(demo_tokenizer().encode(TEXTS[kind], add_special_tokens=False))
    assert 0.8 * real <= tokens_of(TEXTS[kind]) <= 1.8 * real


def test_texts_calls_and_parts_count_alike() -> None:
    args = {"text": CHINESE}
    call = AIMessage("", tool_calls=[{"name": "note", "args": args, "id": "1"}])
    parts = HumanMessage([{"type": "text", "text": CHINESE}])
    for message in (HumanMessage(CHINESE), parts, call):
        found = estimate([message])
        assert found.fewest == count_tokens_approximately([message])
        assert found.most >= found.fewest + 2 * len(CHINESE) - 1
    assert estimate([HumanMessage("word " * 99)]) == (128, 128)
    assert tokens_of("\ud800") < 4  # half a character of UTF-16


def router(*windows: int) -> Router:
    """Models with such windows; the shortest has the best score."""
    return Router(
        Catalog(
            [
                ModelSpec(
                    name=str(window),
                    source="m",
                    trinity=99 - place,
                    parameters=1,
                    engine=EngineOptions(kind="openai", base_url="http://far/v1", max_model_len=window),
                )
                for place, window in enumerate(windows)
            ]
        )
    )


def chosen(router: Router, text: str) -> str:
    messages: list[BaseMessage] = [HumanMessage(text)]
    return router.decide(messages, rules("word " * 20), Context())["model"]


def test_long_chinese_texts_go_to_the_longer_model() -> None:
    made = router(2048, 32_768)
    assert chosen(made, CHINESE) == "2048"
    assert chosen(made, "潮汐" * 2100) == "32768"
    assert chosen(made, "x" * 4200) == "2048"


def test_what_may_fit_is_tried_in_the_longest() -> None:
    text = "潮汐" * 2100  # 9,450 tokens by the count, of which others need a third
    assert chosen(router(2048, 4096), text) == "4096"
    decision = router(2048, 4096).decide([HumanMessage(text)], rules("x"), Context())
    assert "9,454 tokens, which is too much for its context of 2,048" in decision["candidates"][0]["reason"]
    with pytest.raises(errors.PromptTooLongError, match="too long for every model"):
        chosen(router(512, 1024), text)
