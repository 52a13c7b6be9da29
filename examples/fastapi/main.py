"""A web service that submits jobs, and leaves the streaming to the edge: the browser follows the job there, with a token for this
one job. The service holds no connection while the job runs, and may be restarted meanwhile.

    tailwater up --allow-origin http://127.0.0.1:8000
    pip install fastapi httpx uvicorn && uvicorn --app-dir examples/fastapi main:app

Then open http://127.0.0.1:8000/. `EDGE` is the edge's address. With tokens, `TAILWATER_TOKEN` is one that may submit:

    openssl rand -base64 32 > secret
    tailwater up --auth jwt --auth-secret secret
    TAILWATER_TOKEN=$(tailwater token --auth-secret secret --sub service --submit demo --ttl 1h) uvicorn --app-dir examples/fastapi main:app
"""

import os
from pathlib import Path

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

EDGE = os.environ.get("EDGE", "http://127.0.0.1:4000")
TOKEN = os.environ.get("TAILWATER_TOKEN")
HEADERS = {"authorization": f"Bearer {TOKEN}"} if TOKEN else {}

app = FastAPI()


class Question(BaseModel):
    words: int


@app.post("/ask")
async def ask(question: Question) -> dict[str, str | None]:
    # Check here who asks, and how often.
    job = {"kind": "demo", "input": {"words": question.words, "rate": 20}}
    async with httpx.AsyncClient(base_url=EDGE, headers=HEADERS) as edge:
        answer = await edge.post("/api/jobs", json=job)
    body = answer.json()
    if answer.is_error:
        raise HTTPException(503, body["detail"])
    # Only an edge that checks tokens gives one for watching.
    return {"edge": EDGE, "job": body["id"], "token": body.get("watch_token")}


@app.get("/", response_class=HTMLResponse)
def page() -> str:
    return (Path(__file__).parent / "index.html").read_text().replace("EDGE", EDGE)
