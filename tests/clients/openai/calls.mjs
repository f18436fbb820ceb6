// Calls a server as its users do, by the official package; tells what came as JSON on standard output.
import OpenAI from "openai";

const { baseURL, apiKey, poorKey, scripts } = JSON.parse(process.env.TOLD);
const client = new OpenAI({ baseURL, apiKey });
const look = { name: "look", parameters: { type: "object", properties: { at: { type: "string" } } } };
const asking = (script, more = {}) => ({
  model: "scripted",
  tools: [{ type: "function", function: look }],
  messages: [{ role: "user", content: `<script>${JSON.stringify(script)}</script>` }],
  ...more,
});

async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code, type: error.type };
  }
  return null;
}

async function streamed() {
  const stream = await client.chat.completions.create(
    asking(scripts.calls, { stream: true, stream_options: { include_usage: true } }),
  );
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, usage };
}

async function helper() {
  const runner = client.chat.completions.stream(asking(scripts.calls, { stream: true }));
  const whole = await runner.finalChatCompletion();
  const [call] = whole.choices[0].message.tool_calls;
  return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
}

async function left() {
  const stream = await client.chat.completions.create(asking(scripts.endless, { stream: true }));
  let chunks = 0;
  for await (const _ of stream) {
    if (++chunks === 5) break;
  }
  return chunks;
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await client.chat.completions.create(asking(scripts.calls));
const told = {
  models,
  model: (await client.models.retrieve("scripted")).id,
  whole: { text: whole.choices[0].message.content, usage: whole.usage },
  streamed: await streamed(),
  helper: await helper(),
  left: await left(),
  errors: {
    credentials: await errorOf(() => new OpenAI({ baseURL, apiKey: "stu_wrong" }).models.list()),
    model: await errorOf(() => client.chat.completions.create(asking(scripts.calls, { model: "unknown" }))),
    missing: await errorOf(() => client.models.retrieve("unknown")),
    request: await errorOf(() => client.chat.completions.create(asking(scripts.calls, { n: 2 }))),
    budget: await errorOf(() =>
      new OpenAI({ baseURL, apiKey: poorKey }).chat.completions.create(asking(scripts.calls)),
    ),
    broken: await errorOf(async () => {
      for await (const _ of await client.chat.completions.create(asking(scripts.broken, { stream: true })));
    }),
  },
};
console.log(JSON.stringify(told));
