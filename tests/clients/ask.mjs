// Asks the service at argv[2] for pictures with each client as its own manual says; prints what
// each got, one JSON object a line.
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";

const baseURL = `${process.argv[2]}/v1`;
const tell = (client, seen) => console.log(JSON.stringify({ client, ...seen }));

const openai = new OpenAI({ baseURL, apiKey: "any" });
const prompt = "a fox from npm";
for (const model of ["dall-e-3", "gpt-image-1"]) {
  const { data } = await openai.images.generate({ model, prompt, size: "256x256" });
  tell("openai", { model, url: data[0].url, b64_json: data[0].b64_json });
}
const stream = await openai.images.generate({
  model: "gpt-image-1", prompt, size: "256x256", stream: true, partial_images: 1,
});
for await (const event of stream) {
  tell("openai stream", { type: event.type, b64_json: event.b64_json });
}
try {
  await openai.images.generate({ prompt, size: "500x500" });
} catch (error) {
  tell("openai refused", { name: error.constructor.name, param: error.param, words: error.message });
}

const provider = createOpenAI({ baseURL, apiKey: "any" });
for (const model of ["gpt-image-1", "dall-e-3", "turbo"]) {
  const { images, warnings } = await generateImage({
    model: provider.image(model), prompt, n: 2, size: "256x256",
  });
  tell("ai", { model, pictures: images.map((image) => image.base64), warnings });
}
