"""What the service says of its own accord, in each language."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from gptflow_customer_service.knowledge import Locale

HandoffReason = Literal[
    "requested",
    "low_confidence",
    "out_of_scope",
    "unsupported_answer",
    "dissatisfied",
    "unsupported_language",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """The sentences of one language; the last three are for the person who takes over."""

    welcome: str
    which: str
    rephrase: str
    cannot: str
    goodbye: str
    thanks: str
    handoff: Mapping[HandoffReason, str]
    summary: str
    earlier: str
    personal: str


EN = Messages(
    welcome="Hello! What can I help you with?",
    which="I am not sure that I understood. Did you mean:",
    rephrase="I did not understand that. Could you say it in other words, or pick a topic?",
    cannot="I cannot answer that. These are some of the things that I can help with:",
    goodbye="Goodbye, and thank you for contacting us.",
    thanks="You are welcome. Just write again if you need anything else.",
    handoff={
        "requested": "I am connecting you with a colleague. Please stay in this chat.",
        "low_confidence": "I have not been able to help, so a colleague will take over here.",
        "out_of_scope": "I cannot answer that myself; a colleague will take your question.",
        "unsupported_answer": "I have no reliable answer to that, so a colleague will take over.",
        "dissatisfied": "I am sorry about the trouble. A colleague will take care of it now.",
        "unsupported_language": "I can only reply in English or Chinese, so a colleague will help.",
    },
    summary='Topic: {intent}. Last message: "{last}"',
    earlier='Earlier: "{texts}"',
    personal="Personal data masked: {kinds}",
)

ZH = Messages(
    welcome="您好！请问有什么可以帮您？",
    which="我不确定是否理解正确，您是想问：",
    rephrase="抱歉，我没有理解。请换一种说法，或选择一个主题。",
    cannot="这个问题我无法回答。我可以帮您解决以下问题：",
    goodbye="再见，感谢您的联系。",
    thanks="不客气，如有其他问题请随时联系我们。",
    handoff={
        "requested": "正在为您转接人工客服，请不要离开。",
        "low_confidence": "抱歉没能帮到您，现在由人工客服为您服务。",
        "out_of_scope": "这个问题我无法回答，已为您转给人工客服。",
        "unsupported_answer": "这个问题我没有可靠的答案，由人工客服为您解答。",
        "dissatisfied": "非常抱歉给您带来不便，人工客服马上为您处理。",
        "unsupported_language": "我只能用中文或英文回复，由人工客服为您服务。",
    },
    summary="主题：{intent}。最后一条消息：“{last}”",
    earlier="此前：“{texts}”",
    personal="已隐去的个人信息：{kinds}",
)

MESSAGES: Mapping[Locale, Messages] = {"en": EN, "zh": ZH}
