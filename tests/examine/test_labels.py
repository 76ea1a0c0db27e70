"""Labels: a local server stands for the endpoint; what is sent, kept and refused."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError, ModelError
from neurosae.examine.endpoint import Endpoint, ask
from neurosae.examine.labels import label_features, read_labels
from neurosae.spec.examine import endpoint_problem

SECRET = "not-a-real-key"


class Server(HTTPServer):
    """Answers with what it was told to, and remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.headers, self.reply, self.code, self.location = [], [], None, 200, None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.asked.append({"path": self.path, **body})
        self.server.headers.append(dict(self.headers))
        text = self.server.reply(prompt) if callable(self.server.reply) else self.server.reply
        data = text if isinstance(text, bytes) else json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(self.server.code)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def at(server, **more):
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "judge-1", **more)


def shown(n_features=2):
    """Examples whose token is 'keys' where active, 'boat' where silent."""
    rows = []
    for feature in range(n_features):
        for i in range(12):
            active = i < 6
            kind = ("top" if i < 2 else "random") if active else "zero"
            pieces = ["the", " keys" if active else " boat", f" {i}"]
            value = float(6 - i) if active else 0.0
            rows.append({"site": "late", "feature": feature, "kind": kind, "value": value, "text": i, "token_index": 1,
                         "at": 1, "pieces": pieces, "values": [0.0, value, 0.0]})  # fmt: skip
    return pd.DataFrame(rows)


def judged(prompt):
    """3 where the marked token is keys, else 0; a label that asks for boats gets the reverse."""
    if not prompt.startswith("Label:"):
        return " Keys, marked.\n"
    lines = [line for line in prompt.splitlines() if line[:1].isdigit() and "«" in line]
    return f"Here: {json.dumps([3 if '«keys»' in line else 0 for line in lines])}"


def test_labels_and_scores_from_an_endpoint(server, tmp_path):
    """Label cleaned, judge blind, AUROC of a perfect judge 1; cost told before the first request."""
    said, server.reply = [], judged

    def say(line):
        said.append((line, len(server.asked)))

    found = label_features(shown(), at(server, cache=str(tmp_path)), judge=at(server, cache=str(tmp_path)), say=say)
    assert found["label"].tolist() == ["Keys, marked", "Keys, marked"]
    assert_allclose(found["auroc"], 1.0)
    assert_allclose(found["mean_active"], 3.0)
    assert_allclose(found["mean_other"], 3.0)
    assert found["n_silent"].tolist() == [6, 6]
    assert said[0][1] == 0
    assert "1 requests with 2 texts" in said[0][0]  # both features ask the same: it is sent once
    assert "127.0.0.1" in said[0][0]
    asked = [one for one in server.asked if one["messages"][0]["content"].startswith("Label")]
    assert not any("[6]" in one["messages"][0]["content"] or "[10]" in one["messages"][0]["content"] for one in asked)
    assert {one["temperature"] for one in server.asked} == {0}
    assert {one["path"] for one in server.asked} == {"/v1/chat/completions"}


def test_answers_are_kept_and_never_asked_again(server, tmp_path):
    """Same question, no request; also for an answer that made no sense."""
    server.reply = judged
    endpoint = at(server, cache=str(tmp_path))
    first = label_features(shown(), endpoint, judge=endpoint, say=str)
    n = len(server.asked)
    said = []
    again = label_features(shown(), endpoint, judge=endpoint, say=said.append)
    assert len(server.asked) == n
    assert "0 requests" in said[0]
    pd.testing.assert_frame_equal(first, again)
    server.reply = b"{}"
    assert ask(endpoint, "new")["answer"] is None
    server.reply = "sense at last"
    assert ask(endpoint, "new")["status"].startswith("malformed")
    record = json.loads(next(iter(tmp_path.iterdir())).read_text())
    assert {"question", "answer", "model", "date"} <= set(record)


def test_malformed_answers_are_missing(server):
    """A label of a page, scores that are too few: missing, with the reason."""
    server.reply = lambda prompt: "[3, 3]" if prompt.startswith("Label") else "keys"
    found = label_features(shown(1), at(server), judge=at(server), say=str)
    assert found["auroc"].isna().all()
    assert "not 10 scores" in found["judge_status"].item()
    server.reply = "word " * 100
    found = label_features(shown(1), at(server), say=str)
    assert found["label"].isna().all()
    assert "malformed" in found["status"].item()


def test_the_key_comes_from_the_environment_alone(server, tmp_path, monkeypatch):
    """In one header, in no file, in no message."""
    server.reply = "fine"
    endpoint = at(server, key="TEST_LABEL_KEY", cache=str(tmp_path))
    monkeypatch.delenv("TEST_LABEL_KEY", raising=False)
    with pytest.raises(ModelError, match="TEST_LABEL_KEY is not set"):
        ask(endpoint, "x")
    assert not server.asked
    monkeypatch.setenv("TEST_LABEL_KEY", SECRET)
    assert ask(endpoint, "x")["answer"] == "fine"
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert not any(SECRET in path.read_text() for path in tmp_path.iterdir())
    server.code = 401
    with pytest.raises(ModelError, match="401") as told:
        ask(endpoint, "y")
    assert SECRET not in str(told.value)


def test_a_key_that_is_repeated_is_kept_nowhere(server, tmp_path, monkeypatch):
    """A server that sends the key back: no file, no answer has it. A key that no header can hold is not repeated."""
    server.reply = f"you said {SECRET}"
    endpoint = at(server, key="TEST_LABEL_KEY", cache=str(tmp_path))
    monkeypatch.setenv("TEST_LABEL_KEY", SECRET)
    assert ask(endpoint, "x")["answer"] == "you said <TEST_LABEL_KEY>"
    assert len(kept := list(tmp_path.iterdir())) == 1
    assert SECRET not in kept[0].read_text()
    for wrong in (f"{SECRET}\nx", f"{SECRET}\u20ac"):
        monkeypatch.setenv("TEST_LABEL_KEY", wrong)
        with pytest.raises(ModelError, match="no key has") as told:
            ask(endpoint, "y")
        assert SECRET not in str(told.value)
    assert len(server.asked) == 1


def test_redirects_are_refused(server, tmp_path):
    """What is sent goes where the user said, nowhere else."""
    server.reply, server.code, server.location = "x", 302, f"http://127.0.0.1:{server.server_port}/elsewhere"
    with pytest.raises(ModelError, match="elsewhere"):
        ask(at(server, cache=str(tmp_path)), "x")
    assert len(server.asked) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "key"),
    [("ftp://x/v1", ""), ("x", ""), ("https://a:b@x/v1", ""), ("https://x/v1?key=1", ""), ("http://x.example/v1", "K")],
)
def test_endpoint_refuses_bad_addresses(url, key):
    """Other schemes, keys in the address, keys over plain http."""
    assert endpoint_problem(url, key)
    with pytest.raises(ModelError, match="endpoint"):
        ask(Endpoint(url, "m", key), "x")


def test_labels_by_functions():
    """Any callable; the scores of a judge that knows nothing are at chance, of another label below one's own."""
    labels = iter(["keys", "boats"])

    def judge(label, texts):
        return [3 * (f"«{label[:4]}" in text) for text in texts]

    found = label_features(shown(), lambda given: next(labels), judge=judge)
    assert found["label"].tolist() == ["keys", "boats"]
    assert_allclose(found["auroc"], [1.0, 0.0])  # the wrong label is right where the feature is silent
    assert_allclose(found["mean_other"], [0.0, 3.0])
    assert np.isnan(found["rho"]).all()
    deciles = found["deciles"].iloc[0]
    assert [d for d in deciles if not np.isnan(d)] == [3.0] * 4
    assert found["deciles_n"].iloc[0] == [0, 0, 1, 0, 1, 0, 0, 1, 0, 1]  # activations 1, 2, 3, 4 of 4
    assert [d for d in found["deciles_other"].iloc[1] if not np.isnan(d)] == [3.0] * 4
    assert found["other_status"].tolist() == ["ok", "ok"]
    graded = label_features(shown(1), lambda given: "x", judge=lambda _, texts: [int(t[-1]) % 4 for t in texts])
    values, scores = np.array([4.0, 3, 2, 1]), np.array([2, 3, 0, 1])
    assert_allclose(graded["rho"].item(), np.corrcoef(values.argsort().argsort(), scores.argsort().argsort())[0, 1])


def test_another_label_is_scored_on_the_same_examples():
    """A judge who looks at the text alone gives both labels one curve over the tenths of the range."""
    labels = iter(["keys", "boats"])
    found = label_features(shown(), lambda _: next(labels), judge=lambda _, texts: [int(t[-1]) % 4 for t in texts])
    assert found["other_status"].tolist() == ["ok", "ok"]
    for own, other in zip(found["deciles"], found["deciles_other"], strict=True):
        assert_allclose(own, other)
        assert len({score for score in own if not np.isnan(score)}) > 1


def test_a_malformed_control_is_said_so():
    """Scores of another label that cannot be read: missing, with the reason, while the label's own stand."""
    labels = iter(["keys", "boats"])

    def judge(label, texts):
        return [2] * (len(texts) - (label == "boats"))

    found = label_features(shown(), lambda given: next(labels), judge=judge)
    assert found["judge_status"].tolist()[0] == "ok"
    assert found["other_status"].str.startswith("malformed").tolist() == [True, False]
    assert np.isnan(found["mean_other"].iloc[0])
    assert np.isnan(found["deciles_other"].iloc[0]).all()
    assert found["other_status"].iloc[1] == "not asked"  # its own scores were malformed
    alone = label_features(shown(1), lambda given: "x", judge=lambda _, texts: [1] * len(texts))
    assert alone["other_status"].item() == "no other label"


def test_a_judge_sees_nothing_that_led_the_labeller():
    """An example that is among the strongest and among the random ones is judged by nobody."""
    table = shown(1)
    table.loc[3, ["text", "token_index"]] = table.loc[0, ["text", "token_index"]]
    asked = []

    def judge(label, texts):
        asked.extend(texts)
        return [1] * len(texts)

    found = label_features(table, lambda given: " ".join(example.text[-1] for example in given), judge=judge)
    assert found["label"].item() == "0 1"
    active = [text.startswith("the «keys") for text in asked]
    assert active not in (sorted(active), sorted(active, reverse=True))  # the order gives nothing away
    assert sorted(text[-2:].strip() for text in asked) == sorted(["2", "4", "5", *map(str, range(6, 12))])
    assert found["n_active"].item() == 3


def test_own_labels_are_read_and_checked(tmp_path):
    """Site, feature, label; a line that lacks one is named."""
    file = tmp_path / "labels.csv"
    file.write_text('site,feature,label\nlate,12,"a, <b>"\nearly,3,x\n')
    assert read_labels(file).values.tolist() == [["late", 12, "a, <b>"], ["early", 3, "x"]]
    for text, said in (
        ("site,feature,label\nlate,12,\n", ":2: has no label"),
        ("site,feature,label\nlate,x,y\n", "is no index"),
        ("site,feature,label\nlate,1,y\nlate,1,z\n", "twice"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            read_labels(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
