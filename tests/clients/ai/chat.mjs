// Uses a chat as `useChat` does, by the official packages; tells what came of it as JSON on standard output.
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";

const { story, base, token, id, body, text, answers } = JSON.parse(process.env.TOLD);
const api = `${base}/api/chat/${id}/ui`;
const headers = { Authorization: `Bearer ${token}` };

/** A chat as a page has it that has just been loaded. `seen`: how long its text was at each change. */
function open(options = {}) {
  const data = [];
  const chat = new Chat({
    id,
    transport: new DefaultChatTransport({ api, headers, body }),
    onData: (part) => data.push(structuredClone(part)),
    ...options,
  });
  const seen = [];
  chat["~registerMessagesCallback"](() => {
    const length = textOf(chat).length;
    if (length !== seen.at(-1)) seen.push(length);
  });
  return { chat, seen, data };
}

const last = (chat) => chat.messages.at(-1) ?? { parts: [] };
const textOf = (chat) =>
  last(chat).role === "assistant"
    ? last(chat)
        .parts.filter((part) => part.type === "text")
        .map((part) => part.text)
        .join("")
    : "";
const tell = (chat) => ({
  status: chat.status,
  error: chat.error?.message ?? null,
  id: last(chat).id,
  text: textOf(chat),
  messages: chat.messages.length,
  parts: last(chat).parts,
});

async function until(happened) {
  while (!happened()) await new Promise((resolve) => setTimeout(resolve, 10));
}

const stories = {
  async reply() {
    const { chat, seen } = open();
    await chat.sendMessage({ text });
    const again = open({ messages: [] });
    await again.chat.sendMessage({ ...chat.messages[0] });
    return { ...tell(chat), seen, again: tell(again.chat) };
  },

  async regenerate() {
    const { chat } = open();
    await chat.sendMessage({ text });
    const first = tell(chat);
    await chat.regenerate();
    return { first, second: tell(chat) };
  },

  async resume() {
    const idle = open();
    await idle.chat.resumeStream();
    const { chat, seen } = open();
    const sending = chat.sendMessage({ text });
    await until(() => seen.length > 5);
    await chat.stop(); // leaves the stream, and stops nothing
    await sending;
    const left = textOf(chat);
    const fresh = open();
    const same = open({ messages: chat.messages });
    await Promise.all([fresh.chat.resumeStream(), same.chat.resumeStream()]);
    return { idle: tell(idle.chat), left, fresh: tell(fresh.chat), same: tell(same.chat), seen: fresh.seen };
  },

  async stop() {
    const { chat, seen } = open();
    const sending = chat.sendMessage({ text });
    await until(() => seen.length > 5);
    const busy = open();
    await busy.chat.sendMessage({ text: "And another thing." });
    const stopped = await fetch(`${api}/stop`, { method: "POST", headers });
    await sending;
    const idle = await fetch(`${api}/stop`, { method: "POST", headers });
    return { ...tell(chat), busy: tell(busy.chat), statuses: [stopped.status, idle.status] };
  },

  async agent() {
    const { chat, data } = open();
    await chat.sendMessage({ text });
    return { ...tell(chat), states: data.filter((part) => part.type === "data-task").map((part) => part.data.state) };
  },

  async retold() {
    const { chat, seen } = open();
    const sending = chat.sendMessage({ text });
    await until(() => textOf(chat));
    const before = textOf(chat);
    await fetch(`${base}/api/agent/tasks/${last(chat).id}/messages`, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/json" },
      body: JSON.stringify({ content: "I have read something." }),
    });
    await sending;
    return { ...tell(chat), before, seen };
  },

  async failure() {
    const { chat } = open();
    await chat.sendMessage({ text });
    return tell(chat);
  },

  async outlast() {
    const { chat } = open();
    await chat.sendMessage({ text });
    const broken = tell(chat);
    for (let tries = 0; tries < 300 && chat.status === "error"; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      await chat.resumeStream();
    }
    return { broken, whole: tell(chat) };
  },

  async approvals() {
    const asked = [];
    const { chat } = open({ sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses });
    await chat.sendMessage({ text });
    while (asked.length < 10) {
      await until(() => chat.status === "ready" || chat.status === "error");
      const open = last(chat).parts.filter((part) => part.state === "approval-requested");
      if (open.length === 0) break;
      const loaded = new Chat({ id, transport: new DefaultChatTransport({ api, headers }) });
      await loaded.resumeStream();
      asked.push({ tools: open.map((part) => part.toolName), shown: tell(chat), loaded: tell(loaded) });
      for (const part of open) {
        const approved = answers[part.toolName];
        await chat.addToolApprovalResponse({ id: part.approval.id, approved, reason: approved ? undefined : "Too risky." });
      }
    }
    return { ...tell(chat), asked };
  },

  async answered_elsewhere() {
    const { chat } = open();
    await chat.sendMessage({ text });
    const asked = last(chat).parts.find((part) => part.type === "data-approval").data;
    await fetch(`${base}/api/agent/tasks/${asked.taskId}/approvals/${asked.approvalId}`, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/json" },
      body: JSON.stringify({ decision: "allow" }),
    });
    await chat.resumeStream();
    return tell(chat);
  },
};

console.log(JSON.stringify(await stories[story]()));
