"""Answers a chat without a model: repeats the last message, word by word. Its input is `{"messages": [{"role", "content"}, …]}`."""

import json, sys, time

messages = json.load(sys.stdin)["messages"]
for word in f"You said: {messages[-1]['content']} That is message {len(messages)} of this chat.".split():
    print(word, end=" ")
    time.sleep(0.1)
