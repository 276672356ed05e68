"""`Answer` in a Ray Data pipeline: answers and errors are columns whose types do not depend on the rows."""

import pytest
from test_ray_pool import PICTURES

from idefics.batch.ray import Answer


@pytest.fixture
def run_pipeline(three_nodes):
    """The rows that a pipeline with `Answer` writes, and the schema of each block."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False

    def run(items, **keywords):
        keywords = {"model": "demo", "load_keywords": {"feature_cache": False}, **keywords}
        data = ray.data.from_items(items).repartition(target_num_rows_per_block=4)
        data = data.map_batches(
            Answer,
            fn_constructor_kwargs=keywords,
            batch_size=4,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=1,
        ).materialize()
        blocks = [ray.get(ref) for ref in data.to_arrow_refs()]
        return [row for block in blocks for row in block.to_pylist()], [block.schema for block in blocks]

    return run


def test_errors_are_columns_with_stable_types(run_pipeline, demo_model):
    items = [{"id": number, "image": PICTURES[number % len(PICTURES)]} for number in range(20)]
    for number in (4, 5, 6, 7, 13):  # 4 to 7 are a block without an answer
        items[number]["image"] = b"no picture"
    items[14]["image"] = b""
    rows, schemas = run_pipeline(items, max_new_tokens=6)
    assert [row["id"] for row in rows] == list(range(20))
    expected = demo_model.caption(PICTURES[0], max_new_tokens=6)
    assert (rows[0]["text"], rows[0]["tokens"], rows[0]["finish"]) == (
        *(str(expected), expected.usage.completion_tokens, expected.finish),
    )
    assert {row["id"]: row["error_type"] for row in rows if not row["text"]} == {
        **dict.fromkeys((4, 5, 6, 7, 13, 14), "BadPicture")
    }
    assert rows[14]["error"] == "the cell of the picture is empty"
    assert all(row["error"] == "" for row in rows if row["text"])
    types = [{name: str(schema.field(name).type) for name in schema.names} for schema in schemas]
    assert len(types) == 5
    assert all(one == types[0] for one in types)
    assert types[0]["text"] in ("string", "large_string")
    assert types[0]["tokens"] == "int64"
