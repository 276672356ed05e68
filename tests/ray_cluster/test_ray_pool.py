"""`RayAnswerer`: every row is answered once, whatever dies."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from idefics import weights
from idefics.batch import ray_pool
from idefics.batch.answerers import LocalAnswerer, WorkItem
from idefics.batch.ray_engine import EngineSpec, RayEngine, RayOptions
from idefics.batch.run_settings import fingerprint_checkpoint
from idefics.errors import BadSetting, IdeficsError, ModelError, ModelNotFound

PICTURES = [
    path.read_bytes()
    for path in sorted((Path(weights.find_checkpoint("demo")).parent / "pictures").glob("*.png"))
]
BATCH_ROWS = 2


def make_items(number, prompt=None):
    return [WorkItem(b"%d" % one, PICTURES[one % len(PICTURES)], prompt) for one in range(number)]


def make_spec(**changes):
    folder = weights.find_checkpoint("demo")
    keywords = {"model": "demo", "feature_cache": False, "batch_rows": BATCH_ROWS}
    return EngineSpec(
        **{
            "load_keywords": keywords,
            "fingerprint": fingerprint_checkpoint(folder, weights.safetensors_files(folder)),
            "shots": [],
            "task": "caption",
            "options": {"max_new_tokens": 6},
            **changes,
        }
    )


class FakeEngine(RayEngine):
    """Answers each row with its prompt in 10 ms, or 400 ms if it is "slow"; dies of "die" after 100 ms."""

    def load(self):
        return BATCH_ROWS

    def answer(self, items):
        for one in items:
            time.sleep({"slow": 0.4, "die": 0.1}.get(one.prompt, 0.01))
            if one.prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return [(one.key, {"text": f"{one.prompt} {os.getpid()} {len(items)}"}) for one in items]


class DyingWhileLoading(RayEngine):
    def load(self):
        os.kill(os.getpid(), signal.SIGKILL)


class DyingOnOneNode(FakeEngine):
    def load(self):
        import ray

        if ray.util.get_node_ip_address() == "127.0.0.3":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load()


@pytest.fixture
def make_pool(three_nodes, monkeypatch):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pools = []

    def make(engine_class=FakeEngine, spec=None, **options):
        monkeypatch.setattr(ray_pool, "RayEngine", engine_class)
        pools.append(
            ray_pool.RayAnswerer(RayOptions(address=three_nodes.address, **options), spec or make_spec())
        )
        return pools[-1]

    yield make
    for one in pools:
        one.close()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def answer_all(pool, items):
    """The answers by key. Fails where a key is answered twice."""
    answers = {}
    for key, answer in pool.answer(iter(items)):
        assert key not in answers
        answers[key] = answer
    return answers


def without_time(answers):
    return {key: {**answer, "seconds": 0} for key, answer in answers.items()}


def test_three_engines_answer_as_one_model_does(make_pool, demo_model):
    items = make_items(26, "What is this?")
    items.append(WorkItem(b"bad", b"no picture", "What is this?"))
    spec = make_spec(task="ask")
    local = LocalAnswerer(lambda: demo_model, "ask", spec.options)
    pool = make_pool(RayEngine, spec)
    answers = answer_all(pool, items)
    assert without_time(answers) == without_time(dict(local.answer(iter(items))))
    assert answers[b"bad"]["error_type"] == "BadPicture"
    assert len(pool._engines) == 3  # one on each node


def test_all_engines_work_and_few_rows_are_in_hand(make_pool):
    taken, num_answered, most_in_hand, pids = 0, 0, 0, set()

    def items():
        nonlocal taken
        for one in make_items(5_000, "x"):
            if taken >= 100:
                if len(pids) == 3:
                    return
                time.sleep(0.01)  # an engine is still starting
            taken += 1
            yield one

    for _, answer in make_pool().answer(items()):
        num_answered += 1
        most_in_hand = max(most_in_hand, taken - num_answered)
        pids.add(answer["text"].split()[1])
    assert num_answered == taken >= 100
    assert len(pids) == 3
    # Two blocks of each engine, and one more that has been read for each.
    assert most_in_hand < 3 * 3 * BATCH_ROWS


def test_the_last_blocks_are_smaller(make_pool):
    answers = answer_all(make_pool(num_engines=2), make_items(5, "x"))
    assert sorted(answer["text"].split()[2] for answer in answers.values()) == ["1", "1", "1", "2", "2"]


def test_a_killed_worker_loses_nothing_and_another_one_takes_its_place(make_pool):
    pids, num_taken, answers = set(), 0, {}

    def items():  # until the new worker has answered
        nonlocal num_taken
        for one in make_items(20_000, "x"):
            if len(pids) == 4:
                return
            num_taken += 1
            yield one

    for key, answer in make_pool().answer(items()):
        assert key not in answers
        answers[key] = answer
        pids.add(answer["text"].split()[1])
        if len(answers) == 60:
            os.kill(int(max(pids)), signal.SIGKILL)
    assert len(answers) == num_taken < 20_000


def test_a_removed_node_loses_nothing(make_pool, three_nodes):
    answers = {}
    for key, answer in make_pool().answer(iter(make_items(200, "x"))):
        assert key not in answers
        answers[key] = answer
        if len(answers) == 60:
            three_nodes.remove_node("127.0.0.4")
    assert len(answers) == 200
    assert all("text" in one for one in answers.values())


def test_a_row_that_engines_die_of_is_an_error_and_the_others_are_answered(make_pool):
    items = [
        WorkItem(b"%d" % number, b"", prompt)
        for number, prompt in enumerate(["x", "x", "die", "slow", "slow", "die", "slow", "x"])
    ]
    answers = answer_all(make_pool(), items)
    assert len(answers) == 8
    assert {key for key, one in answers.items() if "text" not in one} == {b"2", b"5"}
    assert answers[b"2"] == {
        "error_type": "EngineDied",
        "error": "2 engines died while they answered this row: it may need more memory than a node has",
    }


def test_a_model_that_is_not_there_ends_the_run(make_pool):
    spec = make_spec(load_keywords={"model": "nobody/nothing", "offline": True})
    with pytest.raises(ModelNotFound, match=r"nobody/nothing.*") as caught:
        answer_all(make_pool(RayEngine, spec), make_items(3))
    assert "\n" not in str(caught.value)


def test_another_checkpoint_on_a_node_ends_the_run(make_pool):
    with pytest.raises(ModelError, match="is another checkpoint than the one on this machine"):
        answer_all(make_pool(RayEngine, make_spec(fingerprint="0" * 64)), make_items(3))


def test_engines_that_die_while_they_load_end_the_run(make_pool):
    with pytest.raises(IdeficsError, match="an engine died 3 times while it loaded the model") as caught:
        answer_all(make_pool(DyingWhileLoading), make_items(3))
    assert "\n" not in str(caught.value)


def test_one_node_on_which_engines_cannot_load_does_not_end_the_run(make_pool):
    answers = answer_all(make_pool(DyingOnOneNode), make_items(400, "x"))
    assert len(answers) == 400
    assert all("text" in one for one in answers.values())


def test_an_engine_that_no_node_has_room_for_is_refused(make_pool):
    with pytest.raises(
        BadSetting, match="no node of the Ray cluster has the 64 CPUs and 0 GPUs of an engine"
    ):
        answer_all(make_pool(num_cpus=64), make_items(3))


def test_without_rows_no_engine_starts(make_pool):
    pool = make_pool()
    assert answer_all(pool, []) == {}
    assert pool._engines == []
