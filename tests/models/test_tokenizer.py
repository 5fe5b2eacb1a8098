"""Reading tokenizers, comparing them token by token, and the ids that end a text."""

import json

import pytest
from tiny_hf import make_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.models.tokenizer import check_fits, compare, eos_ids, load_tokenizer, tokenizer_eos

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_folder_gives_back_what_was_saved(tmp_path):
    saved = make_tokenizer(template=TEMPLATE)
    saved.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == saved.get_vocab() and loaded.eos_token_id == 1
    assert loaded.encode("w5 w9", add_special_tokens=False) == [5, 9]
    assert loaded.apply_chat_template([{"role": "user", "content": "w7"}], tokenize=False) == "w7"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer: add tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_code_that_came_with_a_model_is_not_run(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    try:
        load_tokenizer(tmp_path)
    except InputError as error:
        assert "cannot be read" in str(error)
    assert not (tmp_path / "ran").exists()


def test_equal_tokenizers_pass():
    compare(make_tokenizer(), make_tokenizer())


def test_the_first_differences_are_named():
    with pytest.raises(InputError) as error:
        compare(make_tokenizer(), make_tokenizer(specials=("<s>", "</s>", "x", "y")), "big", "small")
    assert "big and small have different tokenizers" in str(error.value)
    assert "id 2 is 'w2' and 'x', id 3 is 'w3' and 'y'" in str(error.value)
    assert "more" not in str(error.value)
    with pytest.raises(InputError, match=r"id 0 is '<s>' and '</s>', id 1 is '</s>' and '<s>'"):
        compare(make_tokenizer(), make_tokenizer(specials=("</s>", "<s>")))


def test_many_differences_are_counted():
    with pytest.raises(InputError, match="and 11 more"):
        compare(make_tokenizer(words=64), make_tokenizer(words=80))


def test_added_ordinary_tokens_count():
    other = make_tokenizer()
    other.add_tokens(["<think>"])
    with pytest.raises(InputError, match="id 64 is None and '<think>'"):
        compare(make_tokenizer(), other)
    both = make_tokenizer()
    both.add_tokens(["<thought>"])
    with pytest.raises(InputError, match="id 64 is '<thought>' and '<think>'"):
        compare(both, other)


def test_a_special_token_of_one_alone_may_stay_unless_it_ends_texts():
    other = make_tokenizer()
    other.add_special_tokens({"pad_token": "<pad>"})
    compare(make_tokenizer(), other)
    compare(other, make_tokenizer())
    chat = make_tokenizer()
    chat.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(InputError, match="id 64 is '<end>' and None"):
        compare(chat, make_tokenizer())


def test_padding_is_no_token():
    padded = make_tokenizer()
    padded.add_tokens([f"[PAD{i}]" for i in range(64, 70)])
    compare(make_tokenizer(), padded)
    check_fits(padded, 64, "model")
    misplaced = make_tokenizer()
    misplaced.add_tokens(["[PAD3]"])
    with pytest.raises(InputError, match=r"'\[PAD3\]'"):
        compare(make_tokenizer(), misplaced)


def test_a_model_knows_its_tokenizers_ordinary_tokens():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<image>"})
    check_fits(tokenizer, 64, "model")
    with pytest.raises(InputError, match="model has 60 tokens, but its tokenizer has token 60"):
        check_fits(tokenizer, 60, "model")


@pytest.mark.parametrize(
    "generation, config, want",
    [
        ([106, 1], 1, (106, 1)),
        (2, [3, 4], (2,)),
        (None, [3, 4, 3], (3, 4)),
        ([], 0, (0,)),
        ("absent", 5, (5,)),
        ("absent", "absent", ()),
        (None, None, ()),
    ],
)
def test_end_of_text_ids(tmp_path, generation, config, want):
    for name, ids in (("generation_config.json", generation), ("config.json", config)):
        if ids != "absent":
            (tmp_path / name).write_text(json.dumps({"eos_token_id": ids}))
    assert eos_ids(tmp_path) == want


def test_end_of_text_of_a_nested_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [1, 106]}}))
    assert eos_ids(tmp_path) == (1, 106)


@pytest.mark.parametrize("ids", ["</s>", [1, "2"], -1, True, 1.0])
def test_end_of_text_must_be_ids(tmp_path, ids):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(InputError, match="where token ids are needed"):
        eos_ids(tmp_path)


def test_the_tokenizers_own_end():
    assert tokenizer_eos(make_tokenizer()) == (1,)
    assert tokenizer_eos(make_tokenizer(eos=None)) == () and tokenizer_eos(None) == ()
