"""Sources: files, the hub's layout on disk, LLaMA-Factory registries, mixtures."""

import json
from collections import Counter
from itertools import islice

import pytest

from alignlab.data.sources.local import Files, Hub, Mixture, Registry
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Text, Unpaired


def write(folder, name, rows):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def texts(*words):
    return [{"text": word} for word in words]


def files(path, **settings):
    defaults = {"format": "auto", "columns": {}, "bad_rows": "error", "validation_path": None}
    return Files(path=path, **(defaults | settings))


def read(source, split="train"):
    return [row.text for row in source.rows(split)]


def test_files_have_a_validation_part_only_where_it_is_named(tmp_path):
    train, validation = write(tmp_path, "t.jsonl", texts("a", "b")), write(tmp_path, "v.jsonl", texts("c"))
    assert read(files(train), "validation") == []
    source = files(train, validation_path=validation)
    assert (read(source), read(source, "validation")) == (["a", "b"], ["c"])
    assert read(files([validation, train])) == ["c", "a", "b"]


def test_files_are_read_lazily(tmp_path):
    path = write(tmp_path, "t.jsonl", [*texts("a", "b"), {"bad": 1}])
    assert [row.text for row in islice(files(path).rows("train"), 2)] == ["a", "b"]


def test_files_count_what_they_drop_once_per_pass(tmp_path):
    source = files(write(tmp_path, "t.jsonl", [*texts("a", ""), {"bad": 1}]), bad_rows="drop")
    for _ in range(2):
        assert read(source) == ["a"]
    assert source.dropped == {"field 'text' is empty": 1, "no format fits its columns ('bad')": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": None}, "data.path=null"),
        ({"path": "nothing.jsonl"}, "no such file"),
        ({"format": "chatt"}, "data.format"),
    ],
)
def test_files_refuse_wrong_settings_at_once(tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        files(**({"path": write(tmp_path, "t.jsonl", texts("a"))} | settings))


def test_the_fingerprint_changes_with_contents_and_settings_and_with_nothing_else(tmp_path):
    path = write(tmp_path, "t.jsonl", texts("a"))
    first = files(path).fingerprint()
    assert files(path).fingerprint() == first
    others = [
        files(path, format="text"),
        files(path, columns={"text": "x"}),
        files(path, bad_rows="drop"),
        files(path, validation_path=path),
    ]
    write(tmp_path, "t.jsonl", texts("b"))
    assert len({first, files(path).fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, "train.jsonl", [{"question": str(n), "answer": "a"} for n in range(3)])
    write(folder, "test.jsonl", [{"question": "t", "answer": "a"}])
    return str(folder)


def hub(path, **settings):
    defaults = {"subset": None, "split": "train", "validation_split": None, "streaming": False}
    return Hub(path=path, format="auto", columns={}, bad_rows="error", **(defaults | settings))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_sets(hub_folder, streaming):
    source = hub(hub_folder, streaming=streaming, validation_split="test")
    rows = list(source.rows("train"))
    assert [row.messages[0]["content"] for row in rows] == ["0", "1", "2"]
    assert rows[2].origin.endswith("set/train[2]") and rows[2].columns == {"answer": "a"}
    assert len(list(source.rows("validation"))) == 1
    assert source.fingerprint() == hub(hub_folder, streaming=streaming, validation_split="test").fingerprint()


def test_hub_refusals_name_what_was_asked(hub_folder):
    with pytest.raises(InputError, match=r"data.split=nosplit: datasets cannot load it"):
        list(hub(hub_folder, split="nosplit").rows("train"))
    with pytest.raises(InputError, match=r"data.path=nobody/nothing"):
        list(hub("nobody/nothing").rows("train"))


def registry(path, name, **settings):
    defaults = {"validation_name": None, "bad_rows": "error", "streaming": False}
    return Registry(dataset_info=str(path), name=name, **(defaults | settings))


SHARED_REGISTRY = {
    "huanhuan_sft_local": (Demonstration, 100),
    "alpaca_en": (Demonstration, 200),
    "multi_turn": (Demonstration, 200),
    "toolcall": (Demonstration, 40),
    "dpo_zh": (Preference, 100),
    "kto_en": (Unpaired, 50),
    "c4": (Text, 50),
}


@pytest.mark.parametrize("name", SHARED_REGISTRY)
def test_every_entry_of_a_real_registry_loads(shared, name):
    rows = list(registry(shared / "data/registry", name).rows("train"))
    assert Counter(map(type, rows)) == Counter([SHARED_REGISTRY[name][0]] * SHARED_REGISTRY[name][1])


PLAIN = {"instruction": "i", "input": "", "output": "o"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALLED = [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, {"from": "observation", "value": "3"}]
SHAREGPT = {"formatting": "sharegpt"}

# An entry of each kind, one of its rows, and what this becomes.
ENTRIES = {
    "named": ({"columns": {"prompt": "instruction", "query": "input", "response": "output"}}, PLAIN, Demonstration),
    "alpaca": ({}, PLAIN, Demonstration),
    "turns": (SHAREGPT, {"conversations": TURNS * 2}, Demonstration),
    "tools": (
        SHAREGPT | {"columns": {"messages": "conversations", "tools": "tools"}},
        {"conversations": [TURNS[0], *CALLED, TURNS[1]], "tools": '[{"name": "f"}]'},
        Demonstration,
    ),
    "pairs": (
        SHAREGPT
        | {"ranking": True, "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
        {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1] | {"value": "b"}},
        Preference,
    ),
    "verdicts": (
        SHAREGPT
        | {
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        },
        {"messages": TALK, "label": False},
        Unpaired,
    ),
    "texts": ({"columns": {"prompt": "text"}}, {"text": "t"}, Text),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_kind_of_entry_loads(tmp_path, name):
    entry, row, kind = ENTRIES[name]
    write(tmp_path, "rows.jsonl", [row] * 3)
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: {"file_name": "rows.jsonl"} | entry}))
    loaded = list(registry(tmp_path, name).rows("train"))
    assert Counter(map(type, loaded)) == Counter([kind] * 3)


@pytest.fixture
def entries(tmp_path):
    write(tmp_path, "talk.jsonl", [{"chat": [{"who": "customer", "says": "q"}, {"who": "clerk", "says": "a"}]}] * 4)
    write(tmp_path, "pair.jsonl", [{"instruction": "i", "input": "x", "good": "a", "bad": "b", "system": "s"}])
    talk = {
        "file_name": "talk.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "customer", "assistant_tag": "clerk"},
    }
    pair = {
        "file_name": "pair.jsonl",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "good", "rejected": "bad"},
    }
    made = {
        "talk": talk,
        "few": talk | {"num_samples": 3},
        "pair": pair,
        "typo": talk | {"formating": "sharegpt", "columns": {"mesages": "chat"}},
        "alien": talk | {"formatting": "sharegtp"},
        "absent": talk | {"columns": {"messages": "chat", "system": "sys"}},
        "script": {"script_url": "x"},
        "named": {
            "file_name": "pair.jsonl",
            "columns": {"prompt": "instruction", "query": "input", "response": "good"},
        },
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(made))
    return tmp_path / "dataset_info.json"


def test_registry_tags_columns_and_samples(entries):
    assert list(next(registry(entries, "talk").rows("train")).messages) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert len(list(registry(entries, "few").rows("train"))) == 3
    named = next(registry(entries, "named").rows("train"))
    assert [message["content"] for message in named.messages] == ["i\nx", "a"] and named.columns == {"bad": "b"}


def test_a_registry_reads_only_the_columns_that_it_names(entries):
    (row,) = registry(entries, "pair").rows("train")
    assert row.prompt == ({"role": "user", "content": "i"},) and row.columns == {}


def test_a_registry_validates_on_a_named_set(entries):
    source = registry(entries, "talk", validation_name="few")
    assert len(list(source.rows("validation"))) == 3 and list(registry(entries, "talk").rows("validation")) == []
    assert source.fingerprint() != registry(entries, "talk").fingerprint() != registry(entries, "few").fingerprint()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tolk", ["data.name=tolk", "Did you mean 'talk'"]),
        ("typo", ["typo.formating", "Did you mean 'formatting'", "typo.columns.mesages", "Did you mean 'messages'"]),
        ("alien", ["alien.formatting=sharegtp", "Did you mean 'sharegpt'"]),
        ("absent", ["no row has a column 'sys'"]),
        ("script", ["script_url", "Add file_name"]),
    ],
)
def test_registry_refusals(entries, name, words):
    with pytest.raises(InputError) as refusal:
        list(registry(entries, name).rows("train"))
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize("settings", [{"path": None, "name": None}, {"path": "nowhere.json", "name": "x"}])
def test_a_registry_must_be_readable(settings):
    with pytest.raises(InputError, match=r"data\.dataset_info="):
        Registry(
            dataset_info=settings["path"],
            name=settings["name"],
            validation_name=None,
            bad_rows="error",
            streaming=False,
        )


@pytest.fixture
def parts(tmp_path):
    a, b = texts(*[f"a{n}" for n in range(30)]), texts(*[f"b{n}" for n in range(10)])
    return {"a": files(write(tmp_path, "a.jsonl", a)), "b": files(write(tmp_path, "b.jsonl", b))}


def mixture(parts, **settings):
    return Mixture(**({"sources": parts, "weights": None, "stop": "once", "num_rows": None, "seed": 0} | settings))


def test_mixed_once_every_row_comes_once_in_its_own_order(parts):
    mixed = read(mixture(parts, weights={"a": 3, "b": 1}))
    assert sorted(mixed) == sorted([f"a{n}" for n in range(30)] + [f"b{n}" for n in range(10)])
    assert [row for row in mixed if row[0] == "b"] == [f"b{n}" for n in range(10)]
    assert {row[0] for row in mixed[:12]} == {"a", "b"}


@pytest.mark.parametrize("stop", ["once", "first_exhausted", "all_exhausted", "never"])
def test_a_source_without_rows_is_refused(parts, stop):
    class Empty:
        def rows(self, split):
            return iter(())

    with pytest.raises(InputError, match=r"data\.source\.sources\.empty: it has no training row"):
        read(mixture({**parts, "empty": Empty()}, stop=stop, num_rows=50))


def test_stop_rules(parts):
    first = read(mixture(parts, stop="first_exhausted"))
    assert first.count("b9") == 1 and "a29" not in first
    every = read(mixture(parts, stop="all_exhausted"))
    assert {"a29", "b9"} <= set(every) and every.count("b0") > 1 and every.count("a0") == 1
    assert len(read(mixture(parts, stop="never", num_rows=200))) == 200
    assert len(read(mixture(parts, num_rows=5))) == 5


def test_weights_decide_the_shares_and_the_seed_the_order(parts):
    settings = {"stop": "never", "num_rows": 4000, "weights": {"a": 4.0, "b": 1.0}}
    shares = Counter(row[0] for row in read(mixture(parts, **settings)))
    assert shares["a"] == pytest.approx(3200, abs=80)
    assert read(mixture(parts)) == read(mixture(parts)) != read(mixture(parts, seed=1))
    assert mixture(parts).fingerprint() == mixture(parts).fingerprint() != mixture(parts, seed=1).fingerprint()


def test_validation_rows_of_a_mixture_are_those_of_its_sources(tmp_path, parts):
    path = write(tmp_path, "v.jsonl", texts("v"))
    assert read(mixture(parts | {"c": files(path, validation_path=path)}), "validation") == ["v"]


@pytest.mark.parametrize(
    ("settings", "words"), [({"weights": {"a": 1, "bb": 1}}, "data.weights.bb"), ({"stop": "never"}, "no end")]
)
def test_mixtures_that_cannot_be_drawn_are_refused(parts, settings, words):
    with pytest.raises(InputError, match=words):
        mixture(parts, **settings)
