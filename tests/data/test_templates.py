"""Which tokens are trained, known by construction from the template."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizers import CHATML, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from accord.data import Renderer, encode_group, encode_groups, encode_prompts
from accord.errors import ConfigError, DataError
from accord.records import Comparison, Group, Message, Response

U = Message(role="user", content="hi")
A = Message(role="assistant", content="yes")
B = Message(role="assistant", content="no")
PAIR = Group(
    prompt=(U,), responses=(Response(content=(A,)), Response(content=(B,))), judgements=(Comparison(better=0, worse=1),)
)
DIALOGUE = Group(prompt=(U,), responses=(Response(content=(A, Message(role="user", content="sure?"), B)),))


def spans(tokenizer: PreTrainedTokenizerFast, group: Group, **options: object) -> list[tuple[str, bool]]:
    """The response as runs of (text, trained?)."""
    response = encode_group(group, tokenizer, **options).responses[0]
    runs: list[tuple[list[int], bool]] = []
    for token, flag in zip(response.ids, response.is_trained or [True] * len(response.ids), strict=True):
        if not runs or runs[-1][1] != flag:
            runs.append(([], flag))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), flag) for ids, flag in runs]


def test_chatml_trains_the_answer_and_its_end_mark(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_group(PAIR, chat_tokenizer)
    assert chat_tokenizer.decode(list(encoded.prompt_ids)) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    texts = [chat_tokenizer.decode(list(response.ids)) for response in encoded.responses]
    assert texts == ["yes<|im_end|>", "no<|im_end|>"]  # one end mark, no line break after it, no second EOS
    assert all(response.has_eos and response.is_trained is None for response in encoded.responses)


def test_of_several_turns_only_the_assistants_words_and_end_marks_are_trained(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    between = "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    assert spans(chat_tokenizer, DIALOGUE) == [("yes<|im_end|>", True), (between, False), ("no<|im_end|>", True)]
    last = spans(chat_tokenizer, DIALOGUE, train_turns="last")
    assert last == [("yes<|im_end|>" + between, False), ("no<|im_end|>", True)]


def test_whole_text_is_the_templates_own(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_group(DIALOGUE, chat_tokenizer)
    turns = [{"role": m.role, "content": m.content} for m in (U, A, Message(role="user", content="sure?"), B)]
    whole = chat_tokenizer.apply_chat_template(turns, tokenize=False)
    assert chat_tokenizer.decode([*encoded.prompt_ids, *encoded.responses[0].ids]) == whole.rstrip("\n")


def test_transcript_is_used_and_noted_where_there_is_no_template(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode_groups([PAIR], plain_tokenizer)
    group = data.groups[0]
    assert plain_tokenizer.decode(list(group.prompt_ids)) == "\n\nHuman: hi\n\nAssistant:"
    assert plain_tokenizer.decode(list(group.responses[0].ids)) == " yes<eos>"
    assert data.template == "transcript"
    assert "no chat template" in data.notes[0]
    assert data.counts["eos_appended"] == 2


def test_asking_for_the_own_template_of_a_tokenizer_without_one(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"without a chat template.*template.chat=transcript"):
        encode_groups([PAIR], plain_tokenizer, chat_template="own")


def test_names_texts_and_files(plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'transcript'"):
        Renderer(plain_tokenizer, "transcripts")
    with pytest.raises(ConfigError, match="no such file"):
        Renderer(plain_tokenizer, "nothing.jinja")
    (tmp_path / "own.jinja").write_text(CHATML)
    for template in (CHATML, str(tmp_path / "own.jinja")):
        text = Renderer(plain_tokenizer, template).render([U], add_generation_prompt=True)
        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_end_mark_other_than_eos_is_kept_and_noted() -> None:
    tokenizer = byte_tokenizer(eos_token="<eos>", additional_special_tokens=["<|im_end|>", "<|im_start|>"])
    tokenizer.chat_template = CHATML
    data = encode_groups([PAIR], tokenizer)
    assert tokenizer.decode(list(data.groups[0].responses[0].ids)) == "yes<|im_end|>"
    assert data.counts["end_is_not_eos"] == 2
    assert "another token than the tokenizer's EOS" in data.notes[0]


def test_template_that_does_not_end_turns_gets_an_eos(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    response = encode_group(PAIR, plain_tokenizer, chat_template=template).responses[0]
    assert plain_tokenizer.decode(list(response.ids)) == "yes\n<eos>"
    assert response.has_eos


def test_start_token_of_the_template_is_not_doubled() -> None:
    tokenizer = byte_tokenizer(eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = "{{ '<s>' }}" + CHATML.replace("<|im_end|>", "</s>")
    for rule in ("auto", "always"):
        ids = encode_group(PAIR, tokenizer, add_bos=rule).prompt_ids
        assert ids.count(tokenizer.bos_token_id) == 1 == (ids[0] == tokenizer.bos_token_id)


REWRITES = (  # thinks before its last answer only, and takes the thought out once another turn follows
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '(thought)' }}{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_template_that_rewrites_earlier_turns_is_refused(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"rewrites earlier text when a turn is added.*train_turns=last"):
        encode_group(DIALOGUE, plain_tokenizer, chat_template=REWRITES)
    runs = spans(plain_tokenizer, DIALOGUE, chat_template=REWRITES, train_turns="last")
    assert runs == [("yes<user>sure?<assistant>", False), ("(thought)no<eos>", True)]


def test_template_that_refuses_a_conversation_names_the_row(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    picky = "{% if messages[0].role != 'user' %}{{ raise_exception('first the user') }}{% endif %}" + CHATML
    system = (Message(role="system", content="be kind"), U)
    bad = Group(prompt=system, responses=(Response(content=(A,)),), origin="a.jsonl:2")
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: .*refuses the turns system, user: first the user.*template.on_error=drop"
    ):
        encode_groups([PAIR, bad], plain_tokenizer, chat_template=picky)
    data = encode_groups([PAIR, bad], plain_tokenizer, chat_template=picky, on_template_error="drop")
    assert [item.origin for item in data.dropped] == ["a.jsonl:2"]
    assert data.counts["template_errors"] == 1


def test_tools_and_variables_reach_the_template(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{{ tools[0].name }} {{ mood }} >{% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}"
    group = Group(
        prompt=(U,),
        responses=(Response(content=(A,)),),
        tools=({"name": "clock"},),
        extra={"chat_template_kwargs": {"mood": "calm"}},
    )
    encoded = encode_group(group, plain_tokenizer, chat_template=template)
    assert plain_tokenizer.decode(list(encoded.prompt_ids)) == "clock calm >"


def test_prompts_alone_have_the_same_ids(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    plain = Group(prompt="Say a:", responses=(Response(content=" a"),))
    prompts = encode_prompts([PAIR, plain], chat_tokenizer)
    assert prompts == [group.prompt_ids for group in encode_groups([PAIR, plain], chat_tokenizer).groups]
