"""Sweep files: what is accepted, what is refused and with which words, presets, smoke overlays, overrides."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.documents import SECTIONS, documents, keys_table, presets_table
from helpers.sweeps import ONE_CLASSIFIER, classifier, document, sweep
from pydantic import ValidationError

import mi_ray.config
from mi_ray.config import PRESETS, ClassifierEntry, Options, Points, Strict, Sweep, TrainingOptions
from mi_ray.sweep_files import load_sweep, parse_overrides


def write(folder: Path, content: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(folder: Path, content: Any, *overrides: str, smoke: bool = False) -> str:
    """The message with which a file is refused."""
    path = write(folder, content)
    with pytest.raises(ValueError, match=r".") as error:
        load_sweep(path, smoke=smoke, overrides=parse_overrides(overrides))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "typo", "meant"),
    [
        ({"clasifiers": []}, "clasifiers", "classifiers"),
        ({"points": {"cuont": 3}}, "cuont", "count"),
        ({"classifiers": classifier(objectve="erm")}, "objectve", "objective"),
        ({"classifiers": classifier(training={"epoch": 3})}, "epoch", "epochs"),
        ({"options": {"eight_bits": True}}, "eight_bits", "eight_bit"),
        ({"search": {"optuna": {"trails": 3}}, "points": {"count": 4, "selection": 2}}, "trails", "trials"),
        ({"resources": {"blocks": {}}}, "blocks", "block"),
        ({"resources": {"block": {"gpu": 1}}}, "gpu", "gpus"),
        ({"resources": {"train": {"cpu": 1}}}, "cpu", "cpus"),
        ({"search": {"optima": {}}}, "optima", "optuna"),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_with_the_likely_one(
    tmp_path: Path, changes: dict[str, Any], typo: str, meant: str
) -> None:
    message = refusal(tmp_path, document(**changes))
    assert f"{typo!r} (did you mean {meant!r}?)" in message
    assert meant in message.partition("known: ")[2].split(", ")


@pytest.mark.parametrize("model", [Sweep, Options])
def test_an_unknown_key_lists_every_known_one(model: Any) -> None:
    with pytest.raises(ValueError, match="known: ") as error:
        model.model_validate({"nonsense_xyz": 1})
    assert all(name in str(error.value) for name in model.model_fields)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attacks": [{"pgd": {}, "epsilon": "8/0"}]}, ["attacks[0].epsilon[0]", "8/0", "fraction such as 8/255"]),
        ({"attacks": [{"pgd": {}, "epsilon": -0.1}]}, ["epsilon must be in [0, 1]", "-0.1"]),
        ({"attacks": [{"pgd": {}, "epsilon": [0.1, 1.5]}]}, ["epsilon[1]", "epsilon must be in [0, 1]", "1.5"]),
        ({"attacks": [{"pgd": {}, "epsilon": []}]}, ["attacks[0].epsilon", "at least 1"]),
        ({"attacks": [{"pgd": {}}]}, ["attacks[0].epsilon"]),
        ({"attacks": [{"pgd": {}, "fgsm": {}, "epsilon": 0.1}]}, ["one method", "pgd", "fgsm"]),
        ({"attacks": [{"epsilon": 0.1}]}, ["one method", "none"]),
        ({"attacks": ["pgd"]}, ["an attack is one method with its threat model", "'pgd'"]),
        ({"attacks": [{"pgd": {}, "epsilon": 0.1, "goal": "sideways"}]}, ["goal", "untargeted", "sideways"]),
        ({"defenses": [["none"]]}, ["defenses[0]", "must be a name"]),
        ({"defenses": []}, ["defenses", "at least 1"]),
        ({"points": {"count": 0}}, ["points.count", "at least 1", "0"]),
        ({"points": {"count": 10, "selection": 10}}, ["points.selection must be less than points.count", "10 of 10"]),
        ({"search": {"optuna": {}}}, ["points.selection must be above 0"]),
        ({"counterparts": "both"}, ["counterparts", "must be true, false or mechanisms; got 'both'"]),
        ({"classifiers": classifier() * 2}, ["different names", "f, f"]),
        ({"classifiers": classifier(training={"batch_size": 64}, workers=3)}, ["evenly", "64 over 3"]),
        (
            {"classifiers": [{"name": "f", "factory": "nets:build", "timm": "resnet18"}]},
            ["one of", "`factory`", "timm"],
        ),
        ({"classifiers": [{"name": "f", "factory": "nets.build", "weights": "w.pt"}]}, ["factory", "nets.build"]),
        ({"classifiers": [{"name": "f"}]}, ["one of `architecture`, `factory` and `zoo`"]),
        ({"classifiers": classifier(factory="a:b", weights="w")}, ["one of `architecture`, `factory` and `zoo`"]),
        ({"classifiers": classifier(mean=[0.5, 0.5], std=[0.5, 0.5])}, ["3 channels", "[0.5, 0.5]"]),
        ({"classifiers": classifier(std=[0.5, 0.5, 0])}, ["std > 0"]),
        ({"preset": "honesty"}, ["preset", "honest", "honesty"]),
        ({"executions": [1, 0]}, ["executions", "0"]),
        ({"executions": []}, ["executions", "at least 1"]),
        ({"attacks": [{"pgd": {}, "epsilon": 0.1, "goal": []}]}, ["goal", "at least 1"]),
        ({"classifiers": classifier(seed=-1)}, ["seed", "at least 0", "-1"]),
        ({"name": "a/b"}, ["name", "a/b"]),
        ({"options": {"draws": 0}}, ["options: draws", "0"]),
        ({"options": {"attack_labels": "guess"}}, ["options: attack_labels", "true", "predicted", "guess"]),
    ],
)
def test_a_bad_value_is_refused_with_the_place_the_rule_and_the_value(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, document(**changes))
    assert message.startswith(str(tmp_path / "sweep.yaml"))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must hold a mapping"),
        ("- a\n- b\n", "must hold a mapping"),
        ("name: [unclosed", "must be YAML"),
        ("a: 1\n\t- b", "must be YAML"),
        ("!!python/object/apply:os.getcwd []", "must be YAML"),
    ],
)
def test_a_file_that_is_no_mapping_of_yaml_is_refused(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(tmp_path, content)


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="must be YAML" if content else "must be readable.*No such file"):
        load_sweep(path)


def test_fractions_and_text_are_read_as_numbers() -> None:
    attack = sweep(attacks=[{"pgd": {}, "epsilon": ["8/255", "1e-2", 0.5, 0, 1]}]).attacks[0]
    assert attack.epsilon == (8 / 255, 0.01, 0.5, 0.0, 1.0)
    assert attack.goal == ("untargeted",)


def test_one_value_stands_for_a_list_of_one() -> None:
    read = sweep(attacks=[{"pgd": {}, "epsilon": 0.1, "goal": "targeted"}], executions=5)
    assert (read.attacks[0].epsilon, read.attacks[0].goal, read.executions) == ((0.1,), ("targeted",), (5,))
    assert sweep(executions=None).executions is None


def test_honest_is_the_preset_when_none_is_named() -> None:
    read = sweep()
    assert read.resolved_options() == Options()
    assert read.training_options() == TrainingOptions()
    options = read.resolved_options()
    found = read.points_order(), read.requested_draws(options), read.requested_executions("mi_pl", options)
    assert found == ("drawn", 3, (30,))


def test_as_published_differs_from_honest_in_every_option_it_names_and_keeps_thirty_executions() -> None:
    read = sweep(preset="as_published")
    options = read.resolved_options()
    honest, published = Options().model_dump(), options.model_dump()
    assert {name for name in honest if honest[name] == published[name]} == {
        "executions",
    }
    assert read.points_order() == "first"
    assert [read.requested_executions(name, options) for name in ("mi_ol", "mi_pl", "mi_combined")] == [
        (30,),
        (10,),
        (15,),
    ]
    assert read.requested_draws(options) == 1
    assert read.training_options() == PRESETS["as_published"][1] != TrainingOptions()


def test_a_single_option_overrides_the_preset_and_leaves_the_others() -> None:
    options = sweep(preset="as_published", options={"combined_accept": "undefended"}).resolved_options()
    assert options.combined_accept == "undefended"
    assert options.model_copy(update={"combined_accept": "pl_average"}) == PRESETS["as_published"][0]


def test_keys_of_the_file_win_over_the_preset() -> None:
    read = sweep(preset="as_published", executions=[10, 5, 10], draws=4, points={"count": 9, "order": "drawn"})
    options = read.resolved_options()
    assert read.requested_executions("mi_pl", options) == read.requested_executions("mi_combined", options) == (5, 10)
    assert (read.requested_draws(options), read.points_order()) == (4, "drawn")


def test_training_preset_switches_training_alone() -> None:
    read = sweep(training_preset="as_published")
    assert read.training_options().inner_labels == "predicted"
    assert (read.resolved_options(), read.points_order()) == (Options(), "drawn")
    assert sweep(preset="as_published", training_preset="honest").training_options() == TrainingOptions()


def test_a_sweep_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sweep().seed = 3  # type: ignore[misc]


def test_smoke_merges_fixed_keys_replaces_the_rest_and_renames_the_study(tmp_path: Path) -> None:
    overlay = {
        "points": {"count": 10},
        "options": {"draws": 1},
        "resources": {"block": {"points": 10}},
        "defenses": ["none"],
    }
    path = write(
        tmp_path, document(points={"count": 40, "selection": 5}, options={"eight_bit": True}, seed=4, smoke=overlay)
    )
    plain, smoke = load_sweep(path), load_sweep(path, smoke=True)
    assert (plain.name, plain.points.count, plain.options) == ("tiny", 40, {"eight_bit": True})
    assert (smoke.name, smoke.points.count, smoke.points.selection) == ("tiny-smoke", 10, 5)
    assert smoke.options == {"eight_bit": True, "draws": 1}
    assert (smoke.resources.block.points, smoke.seed) == (10, 4)
    assert [entry.method for entry in smoke.defenses] == [("none", {})]


def test_smoke_without_an_overlay_is_refused(tmp_path: Path) -> None:
    assert "--smoke needs a `smoke:` mapping" in refusal(tmp_path, document(), smoke=True)


def test_a_smoke_overlay_is_validated_like_the_file(tmp_path: Path) -> None:
    assert "points" in refusal(tmp_path, document(smoke={"points": 5}), smoke=True)
    assert "unknown key 'pionts' (did you mean 'points'?)" in refusal(
        tmp_path, document(smoke={"pionts": {}}), smoke=True
    )


def test_set_reaches_into_mappings_and_lists_and_seed_replaces_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, document(seed=1))
    overrides = [
        "points.count=7",
        "classifiers.0.training.epochs=2",
        "options.draws=5",
        "executions=[1, 2]",
        "defenses.1={gaussian_noise: {sigma: 0.3}}",
        "name=other",
    ]
    read = load_sweep(path, overrides=parse_overrides(overrides), seed=9)
    assert (read.points.count, read.classifiers[0].training.epochs) == (7, 2)
    assert read.requested_draws(read.resolved_options()) == 5
    assert (read.executions, read.seed, read.name) == ((1, 2), 9, "other")
    assert read.defenses[1].method == ("gaussian_noise", {"sigma": 0.3})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("points.count", "--set must be key=value"),
        ("=3", "--set must be key=value"),
        ("classifiers.3.seed=1", "classifiers.3 must be an index from 0 to 0; got '3'"),
        ("classifiers.first.seed=1", "must be an index"),
        ("classifiers.7=x", "there is nothing at classifiers.7 to set"),
        ("name.deeper.x=1", "name.deeper is not a mapping or a list"),
        ("name.deeper=1", "there is nothing at name.deeper to set"),
        ("points.cuont=3", "unknown key 'cuont' (did you mean 'count'?)"),
        ("points.count=none", "points.count"),
        ("points.count=[1", "the value must be YAML; line 1, column 3"),
    ],
)
def test_a_bad_set_is_refused_with_what_is_wrong(tmp_path: Path, override: str, words: str) -> None:
    assert words in refusal(tmp_path, document(), override)


def test_a_sweep_written_out_with_its_defaults_reads_back_as_the_same_sweep(tmp_path: Path) -> None:
    for file in sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml")):
        sweep = load_sweep(file, overrides={"preset": "as_published"})
        written = tmp_path / "study.yaml"
        written.write_text(yaml.safe_dump(sweep.document(), sort_keys=False))
        again = load_sweep(written)
        assert again.resolved_options() == sweep.resolved_options()
        assert again.document() == sweep.document()
        assert again.model_copy(update={"options": sweep.options}) == sweep


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2**63}, "seed must be .*below 2"),
        ({"classifiers": classifier(training={"lr": float("inf")})}, "lr must be a finite"),
        ({"classifiers": classifier(training={"epochs": True})}, "epochs must be a number; got true"),
        ({"classifiers": classifier(training={"lr_drops": [0]})}, "lr_drops.*at least 1"),
        (
            {"defenses": ["none"], "search": {"optuna": {}}, "points": {"count": 9, "selection": 3}},
            "a defense to search",
        ),
    ],
)
def test_a_value_that_would_only_fail_later_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(document(**changes)))
    with pytest.raises(ValueError, match=words):
        load_sweep(file)


ADAPTIVE: dict[str, Any] = {"eot_pgd": {"steps": 2}, "epsilon": 0.1, "knowledge": "adaptive"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attacks": [{"pgd": {}, "epsilon": 0.1, "defenses": ["mi_ol"]}]},
            ["an oblivious attack knows no defense", "pgd needs `knowledge: adaptive`, or no `defenses`"],
        ),
        (
            {"attacks": [{"adaptive": {}, "epsilon": 0.1}]},
            ["an oblivious attack knows no defense", "adaptive needs `knowledge: adaptive`"],
        ),
        ({"attacks": [{**ADAPTIVE, "knowledge": "partial"}]}, ["attacks[0].knowledge", "oblivious", "'partial'"]),
        ({"attacks": [{**ADAPTIVE, "classifiers": ["g"]}]}, ["unknown classifier 'g'", "known: f"]),
        ({"defenses": [{"mi_ol": 0.5, "classifiers": "mixpu"}]}, ["unknown classifier 'mixpu'", "known: f"]),
        ({"defenses": [{"classifiers": ["f"]}]}, ["a defense must be a name", "none"]),
        ({"defenses": [{"mi_ol": 0.5, "mi_pl": 0.5}]}, ["a defense must be a name", "'mi_ol', 'mi_pl'"]),
        ({"checks": "some"}, ["checks.level", "cheap", "subset", "full", "'some'"]),
        ({"checks": {"pionts": 3}}, ["unknown key 'pionts' (did you mean 'points'?)"]),
        ({"checks": {"points": 0}}, ["checks.points", "at least 1"]),
        ({"variants": "every_option"}, ["variants", "each_option"]),
        ({"variants": {"v": {"eight_bits": True}}}, ["unknown key 'eight_bits' (did you mean 'eight_bit'?)"]),
        ({"variants": {"": {"draws": 1}}}, ["variants must have names"]),
        ({"variants": {"v": {"draws": 1}, "w": {"draws": 3}}}, ["must change an option", "these do not: w"]),
        ({"variants": {"v": {}}}, ["must change an option of the study; these do not: v"]),
        (
            {"variants": "each_option", "search": {"optuna": {}}, "points": {"count": 4, "selection": 2}},
            ["search: optuna searches one set of options", "variants"],
        ),
        (
            {
                "defenses": [{"mi_ol": 0.5, "classifiers": ["f"]}],
                "classifiers": [ONE_CLASSIFIER, {**ONE_CLASSIFIER, "name": "g", "seed": 1}],
                "search": {"optuna": {}},
                "points": {"count": 4, "selection": 2},
            },
            ["search: optuna needs a defense to search on each classifier; g has only `none`"],
        ),
        (
            {
                "attacks": [{**ADAPTIVE, "defenses": [{"gaussian_noise": 0.1}]}],
                "search": {"optuna": {}},
                "points": {"count": 4, "selection": 2},
            },
            ["search: optuna proposes settings itself", "{gaussian_noise: 0.1}"],
        ),
    ],
)
def test_a_bad_word_on_who_knows_what_or_what_is_checked_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, document(**changes))
    assert [word for word in words if word not in message] == [], message


def test_attacks_and_defenses_say_on_which_classifiers_and_against_which_defenses() -> None:
    read = sweep(
        classifiers=[ONE_CLASSIFIER, {**ONE_CLASSIFIER, "name": "g", "seed": 1}],
        attacks=[{**ADAPTIVE, "classifiers": "g", "defenses": "mi_ol"}, {"pgd": {}, "epsilon": 0.1}],
        defenses=["none", {"mi_ol": {"lam": 0.5}, "classifiers": ["f", "g"]}, {"mi_pl": None}, {"mi_pl": 0.5}],
    )
    adaptive, oblivious = read.attacks
    assert (adaptive.knowledge, adaptive.classifiers, adaptive.defenses) == ("adaptive", ("g",), (("mi_ol", {}),))
    assert (oblivious.knowledge, oblivious.classifiers, oblivious.defenses) == ("oblivious", None, None)
    assert [entry.method for entry in read.defenses] == [
        ("none", {}),
        ("mi_ol", {"lam": 0.5}),
        ("mi_pl", {}),
        ("mi_pl", 0.5),
    ]
    assert [entry.classifiers for entry in read.defenses] == [None, ("f", "g"), None, None]


def test_every_key_of_a_study_reads_back_from_what_it_wrote_of_itself(tmp_path: Path) -> None:
    whole = sweep(
        attacks=[{**ADAPTIVE, "classifiers": ["f"], "defenses": ["mi_ol"], "goal": ["untargeted", "targeted"]}],
        defenses=["none", {"mi_ol": {"lam": [0.4, 0.5]}, "classifiers": ["f"]}, {"gaussian_noise": 0.1}],
        pool={"cifar100": {"root": "elsewhere"}},
        variants={"one draw": {"draws": 1}, "guessed": {"attack_labels": "predicted", "eight_bit": True}},
        counterparts="mechanisms",
        checks={"level": "full", "points": 7},
    )
    written = tmp_path / "study.yaml"
    written.write_text(yaml.safe_dump(whole.document(), sort_keys=False))
    again = load_sweep(written)
    assert again.document() == whole.document()
    assert again.model_copy(update={"options": {}}) == whole
    assert again.resolved_variants() == whole.resolved_variants()
    assert again.pool == ("cifar100", {"root": "elsewhere"})


@pytest.mark.parametrize(
    ("written", "level", "points"),
    [
        ({}, "subset", 400),
        ({"checks": "cheap"}, "cheap", 400),
        ({"checks": "full"}, "full", 400),
        ({"checks": {"points": 30}}, "subset", 30),
        ({"checks": {"level": "full"}}, "full", 400),
    ],
)
def test_checks_are_a_level_or_a_level_with_points(written: Any, level: str, points: int) -> None:
    assert (sweep(**written).checks.level, sweep(**written).checks.points) == (level, points)


def test_a_smoke_overlay_of_checks_keeps_their_level_and_replaces_attacks(tmp_path: Path) -> None:
    overlay = {"checks": {"points": 5}, "attacks": [ADAPTIVE], "variants": {}}
    file = write(tmp_path, document(checks={"level": "full"}, variants="each_option", smoke=overlay))
    read = load_sweep(file, smoke=True)
    assert (read.checks.level, read.checks.points) == ("full", 5)
    assert [entry.knowledge for entry in read.attacks] == ["adaptive"]
    assert list(read.resolved_variants()) == [""]


def test_each_option_is_the_published_preset_and_every_option_it_changes_switched_alone() -> None:
    found = sweep(variants="each_option").resolved_variants()
    honest, published = Options(), PRESETS["as_published"][0]
    differing = [name for name in Options.model_fields if getattr(honest, name) != getattr(published, name)]
    assert list(found) == ["", "as_published", *differing]
    assert (found[""], found["as_published"]) == (honest, published)
    for name in differing:
        assert found[name] == honest.model_copy(update={name: getattr(published, name)})


def test_each_option_counts_from_the_studys_own_options() -> None:
    found = sweep(variants="each_option", options={"draws": 1, "executions": 5}).resolved_variants()
    assert "draws" not in found  # the study has it as published already
    assert "executions" not in found  # both presets have 30; a study's own 5 is no published choice
    assert found["as_published"].executions == 5
    assert found["eight_bit"] == Options(draws=1, executions=5, eight_bit=True)


def test_each_option_of_the_published_preset_itself_leaves_nothing_to_switch() -> None:
    assert list(sweep(preset="as_published", variants="each_option").resolved_variants()) == [""]


def test_named_variants_change_the_studys_own_options() -> None:
    found = sweep(options={"eight_bit": True}, variants={"v": {"draws": 1}}).resolved_variants()
    assert found == {"": Options(eight_bit=True), "v": Options(eight_bit=True, draws=1)}


MODELS = (*SECTIONS.values(), Options, TrainingOptions)


def test_every_mapping_of_a_sweep_file_has_a_section_and_every_key_a_sentence() -> None:
    assert {
        model for model in vars(mi_ray.config).values() if isinstance(model, type) and issubclass(model, Strict)
    } == {
        Strict,
        *MODELS,
    }
    for model in MODELS:
        for name, field in model.model_fields.items():
            told = str(field.description)
            assert told.endswith(".") and told.lstrip("`")[0].isalpha(), f"{model.__name__}.{name}: {told}"


def test_the_documents_hold_the_tables_that_the_fields_say() -> None:
    for path, text in documents():
        assert path.read_text(encoding="utf-8") == text, (
            f"PYTHONPATH=tests python -m helpers.documents writes {path.name}"
        )


def test_a_documented_key_has_its_values_its_default_and_its_meaning() -> None:
    table = keys_table(Points).splitlines()
    assert (
        "| `count` | a whole number at least 1 | `1000` | The number of images, at most the size of the test split. |"
        in table
    )
    assert table[-1].startswith("| `order` | `drawn`, `first` |  | Whether ")
    assert "| `draws` | `3` | `1` | Independent draws of N executions for each point. |" in presets_table()


def test_a_message_that_quotes_another_name_of_the_file_stays_one_line() -> None:
    """Found by mutating sweep files: a defense whose name ends with a line break, beside a wrong one."""
    attack = {"eot_pgd": {"steps": 1}, "epsilon": 0.1, "knowledge": "adaptive", "defenses": ["mi_old"]}
    with pytest.raises(ValueError, match="unknown defense to attack 'mi_old'") as told:
        load_sweep(document(attacks=[attack], defenses=["none", "é\n"]))
    assert "known: é\\n" in str(told.value)
    assert "\n" not in str(told.value)


def test_of_a_classifier_with_two_names_all_keys_are_told_also_one_that_is_no_text() -> None:
    with pytest.raises(
        ValidationError, match=r"a classifier by name must have one of .*; got name, timm, torchvision, 3"
    ):
        ClassifierEntry.model_validate({"name": "f", "timm": "a", "torchvision": "b", 3: "c"})
