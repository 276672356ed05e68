"""Takes the model class as lmms-eval does, by its entry point, and answers requests of both kinds."""

import sys

from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from PIL import Image

registry = ModelRegistryV2()
registry.load_entrypoint_manifests()
model = registry.get_model_class("idefics").create_from_arg_string("model=demo")
documents = [{"image": Image.open(sys.argv[1]), "question": question} for question in sys.argv[2:]]
model.task_dict["scenes"] = {"test": documents}


def doc_to_messages(document, round_idx=None, previous_output=None, previous_round_info=None):
    text = document["question"] if round_idx is None else f"{previous_output[-1]} Is it day or night?"
    content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return messages if round_idx is None else (messages, round_idx == 2, previous_output, None)


def requests(kind, options):
    return [
        Instance(
            request_type=kind,
            arguments=("", doc_to_messages, options, id, "scenes", "test"),
            idx=0,
            metadata={"task": "scenes", "doc_id": id, "repeats": 1},
        )
        for id in range(len(documents))
    ]


print(model.generate_until(requests("generate_until", {"max_new_tokens": 8, "until": ["\n\n"]})))
print(model.generate_until_multi_round(requests("generate_until_multi_round", {"max_new_tokens": 8})))
try:
    model.loglikelihood([])
except NotImplementedError as error:
    print(type(error).__name__)
