"""`kljudge train-draft`: a head for the embedded target from a command line, what it prints, and bad input."""

import json

import pytest

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.models.shipped import shipped_folder
from kljudge_jax.records import read
from kljudge_jax.results_folder import FolderLock
from kljudge_jax.training.train_draft import TrainedDraft

SMALL = ["--target", "embedded", "--task", "arithmetic", "--n", "24", "--held-out", "8", "--train-batch", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    words = ["train-draft", str(folder), *SMALL, "--answers", "gold", "--vocab-size", "200", "--passes", "2"]
    return folder, words, main(words)


def test_it_writes_a_head_that_loads_and_drafts(trained, capsys):
    folder, words, status = trained
    assert status == 0
    made = read(folder / "draft.json", TrainedDraft)
    assert made.head == str(folder / "head") and made.draft_vocab == 200 and made.sequences == 16
    assert 0.9 < made.covered <= 1 and made.curve[-1].step == made.curve[-1].steps == 4
    assert made.mean_acceptance_length is not None and made.mean_acceptance_length >= 1
    assert len((folder / "draft_vocab.txt").read_text().splitlines()) >= 200
    pair = kj.ModelPair.from_pretrained(shipped_folder() / "target", folder / "head", dtype="float32")
    prompts = [problem.prompt for problem in kj.load_task("arithmetic").problems(n=4)]
    plain, drafted = (
        kj.generate(pair, prompts, verifier=rule, draft_length=2, max_new_tokens=16) for rule in (None, "exact")
    )
    assert plain.text == drafted.text and drafted.stats.drafted > 0
    capsys.readouterr()
    assert main(words) == 0, "a finished run is said again"
    said = capsys.readouterr().out
    assert "200 tokens, which are" in said and "| mean acceptance length" in said
    assert said.rstrip().endswith(str(folder / "head"))


def test_a_folder_of_a_head_of_other_tokens_is_refused(trained, capsys):
    _, words, _ = trained
    capsys.readouterr()
    assert main([*words, "--vocab-size", "199"]) == 2
    assert "the training of a head of other tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_was_begun_otherwise_is_refused_by_name(tmp_path, capsys):
    """At each of its three stages; what it was begun with goes on."""
    words = ["train-draft", str(tmp_path), *SMALL, "--max-new-tokens", "12", "--vocab-size", "200"]
    assert main([*words, "--vocab-only"]) == 0  # answers alone
    capsys.readouterr()

    def refused(*changes, said):
        assert main([*words, *changes]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err

    refused("--max-new-tokens", "16", said="answers that differ in max_new_tokens: choose an empty folder")
    refused("--seed", "1", said="holds an answer to arithmetic/train/0/")
    refused("--bits", "8", said="answers that differ in target")
    assert main(words) == 0
    capsys.readouterr()
    refused("--passes", "2", "--rate", "1e-3", said="another recipe, which differs in passes, rate")
    refused("--layers", "1,2,3", said="features that differ in layers")
    refused("--n", "20", said="a head of other tokens, as other answers have")
    refused("--answers", "gold", said="a head of other tokens, as other answers have")
    (tmp_path / "corpus.json").unlink()
    refused(said="holds answers without corpus.json")


def test_the_vocabulary_alone_is_what_draft_vocab_takes(tmp_path, capsys):
    words = ["train-draft", str(tmp_path), *SMALL, "--answers", "gold", "--vocab-only", "--vocab-size", "100"]
    assert main(words) == 0
    assert "100 tokens, which are" in capsys.readouterr().out
    assert not (tmp_path / "features").exists() and not (tmp_path / "head").exists()
    assert json.loads((tmp_path / "draft.json").read_text())["head"] is None
    pair = kj.ModelPair.embedded(draft_vocab=tmp_path / "draft_vocab.txt")
    assert pair.draft is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "2,x"], "--layers are whole numbers"),
        (["--layers", "2,99"], "layers lie from 0 to 8"),
        (["--vocab-size", "641"], "641"),
        (["--held-out", "24"], "24 problems leave no batch to learn from"),
        (["--passes", "0"], "passes, a rate and a decay above 0"),
        (["--layers", "2,2"], "layers lie from 0 to 8, the target's number, each once"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_input_is_one_line(words, said, tmp_path, capsys):
    assert main(["train-draft", str(tmp_path), *SMALL, "--answers", "gold", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "loaded in" not in line]
    assert said in line


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_read(tmp_path, capsys, monkeypatch):
    for name in ("load_pair", "load_checked_task"):
        monkeypatch.setattr(f"kljudge_jax.commands.train_draft.{name}", lambda *_: pytest.fail("it was read"))
    assert main(["train-draft", str(tmp_path / "made"), *SMALL, "--train-batch", "3"]) == 2
    assert "3 answers of an optimizer step do not divide over 8 devices" in capsys.readouterr().err
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr("kljudge_jax.training.train_draft.train_draft", lambda *given, **_: seen.append(given) or 1 / 0)
    words = SMALL[: SMALL.index("--train-batch")]
    with pytest.raises(ZeroDivisionError):
        main(["train-draft", str(tmp_path / "made"), *words])
    ((pair, _, _, recipe),) = seen
    assert recipe.batch_size == 8, "the least that divides, where nobody says"
    assert pair.draft is None, "no draft is loaded"
    assert not (tmp_path / "made").exists()


def test_a_second_run_in_one_folder_is_refused_in_one_line(tmp_path, capsys):
    with FolderLock(tmp_path):
        assert main(["train-draft", str(tmp_path), *SMALL]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "loaded in" not in line]
    assert f"another process writes to {tmp_path}: wait for it, or name a new folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_help_shows_what_it_takes(capsys):
    assert main(["train-draft", "--help"]) == 0
    shown = capsys.readouterr().out.partition("examples:")[0]
    assert "--target" in shown and "--mesh" in shown
    for name in ("--hosts", "--coordinator", "--host ", "--patience", "--draft ", "--draft-bits", "--draft-axes"):
        assert name not in shown, name
    assert main(["train-draft", "made", *SMALL, "--hosts", "auto"]) == 2
    assert "train-draft runs on one host: leave out --hosts" in capsys.readouterr().err
