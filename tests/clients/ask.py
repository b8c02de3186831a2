"""Asks the service at argv[1] for a picture with each client as its own manual says; prints
what each got, one JSON object a line."""

import json
import sys

import litellm
import openai
import webuiapi
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

url = sys.argv[1]


def tell(client: str, **seen: object) -> None:
    print(json.dumps({"client": client, **seen}), flush=True)


with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
    made = client.images.generate(model="dall-e-3", prompt="a fox from openai", size="256x256")
tell("openai", url=made.data[0].url)

for model in ("dall-e-3", "gpt-image-1", "turbo"):
    made = litellm.image_generation(
        model=f"openai/{model}", prompt="a fox from litellm", size="256x256",
        api_base=f"{url}/v1", api_key="any",
    )  # fmt: skip
    tell("litellm", model=model, url=made.data[0].url, b64_json=made.data[0].b64_json)

wrapper = DallEAPIWrapper(model="dall-e-3", size="256x256", api_key="any", base_url=f"{url}/v1")
tell("langchain", url=wrapper.run("a fox from langchain"))

webui = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")
size = webui.txt2img(prompt="a fox from webuiapi", width=256, height=256).image.size
tell("webuiapi", size=size)
