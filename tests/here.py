"""Shards in this process: what stands in for `pipelines.shards.run_shards` where Ray is not what is tested."""


def run_here(draft, items, make, arguments, **_) -> None:
    process, done = make(*arguments), draft.finished_shards()
    for index, item in enumerate(items):
        if index not in done:
            draft.write_shard(index, process(item))
