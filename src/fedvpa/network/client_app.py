"""The client's side: a Flower ``ClientApp`` that answers for the users of one node.

It keeps nothing between two messages but the users' private state on disk, so a SuperNode may start a fresh process for
each, be killed and come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation import metrics
from fedvpa.evaluation.protocol import make_panel
from fedvpa.federation import declared
from fedvpa.federation.rounds import train_clients
from fedvpa.methods.base import Method, Private, examples
from fedvpa.methods.registry import class_of
from fedvpa.network import messages
from fedvpa.network.messages import Refusal, Reply, Stamp
from fedvpa.network.node import Node, check_method
from fedvpa.network.state import KnownData, PrivateStore, node_secret
from fedvpa.network.tasks import Task, check_task, inferences_of, read_clusters, read_task
from fedvpa.preferences.schema import Client
from fedvpa.preferences.seeding import generator

REFUSED = 1
"""Code of an error reply whose reason says what was refused; other codes are Flower's own."""


CHANGED = "its data have changed since round 0"


def client_app(open_node: Callable[[Context], Node]) -> ClientApp:
    """A ClientApp for the node that `open_node` finds in a context. It may be called for every message."""
    app = ClientApp()

    def answering(answer: Callable[[Node, RecordDict], RecordDict]) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            try:
                node = open_node(context)
                check_method(node.config)
                return Message(answer(node, message.content), reply_to=message)
            except Refusal as e:
                return Message(Error(REFUSED, str(e)), reply_to=message)
            except UserError as e:
                # The place (a file, a line) is the node's own business: it goes to the log here, not to the server.
                print(f"error: {e}", flush=True)
                return Message(Error(REFUSED, "the node cannot use its data; see its log"), reply_to=message)

        return handle

    app.query("enroll")(answering(enroll))
    app.train()(answering(train))
    app.evaluate()(answering(evaluate))
    return app


def enroll(node: Node, content: RecordDict) -> RecordDict:
    """Who is here, with the moments of their features and ratings (round 0); private state of lost rounds goes."""
    head = content.get("task")
    if not isinstance(head, ConfigRecord) or head.get("protocol") != messages.PROTOCOL:
        raise Refusal("not a task of this protocol; use one version of fedvpa everywhere")
    _same_features(node, str(head["features"]))
    stamp = Stamp(str(head["training"]), int(str(head["round"])))
    store = PrivateStore(node.state_dir, stamp.training)
    for name in node.names:
        store.rewind(name, stamp.round)
    changed = _changed(node, stamp.training, node.names)
    keep = [i for i, name in enumerate(node.names) if name not in changed]
    pairs = _counts(node.clients)
    # How much a user holds is the user's own business where privacy is on.
    arrays = {"pairs": torch.ones_like(pairs) if node.config.privacy.on else pairs}
    arrays |= messages.moments_arrays(node.moments())
    arrays = {k: v[keep] for k, v in arrays.items()}
    fields = messages.enroll_fields(node.dim, node.config)
    reply = Reply(tuple(node.names[i] for i in keep), arrays, dict.fromkeys(sorted(changed), CHANGED))
    return messages.write_reply(reply, fields, declared.problems(arrays, fields), stamp)


def train(node: Node, content: RecordDict) -> RecordDict:
    """A round of the task's users, as in the vectorised engine; then their state is written, and the upload checked."""
    task = read_task(content)
    method = _method(node, task)
    users, ids, clients, gone = _here(node, task)
    store = PrivateStore(node.state_dir, task.training)
    fresh = method.init_client(1)
    kept = [store.load(user, task.download.round, fresh) or fresh for user in users]
    private: Private = {k: torch.cat([rows[k] for rows in kept]) for k in fresh}
    data = node.training_data(clients, ids, task.standardizer, task.rating_scale)
    everybody = torch.arange(len(users))
    secret = node_secret(node.state_dir, task.training) if node.config.privacy.secret_noise else None
    upload, private = train_clients(method, node.config, data, task.download, private, everybody, secret)
    for i, user in enumerate(users):
        store.save(user, task.download.round, {k: v[i : i + 1] for k, v in private.items()}, task.keep_from)
    arrays, theta = declared.upload_arrays(upload), task.download.theta
    latent, sums = upload.means.shape[1], declared.sums_of(method, task.download)
    fields = declared.upload_fields(theta, latent, method.metric_names, node.config, sums)
    bad = declared.upload_problems(arrays, fields, theta, node.config, _counts(clients))
    return messages.write_reply(Reply(users, arrays, gone), fields, bad, task.stamp)


def evaluate(node: Node, content: RecordDict) -> RecordDict:
    """How well each inference predicts the users' own held-out pairs, from `federation.context_pairs` of the others.

    With privacy on nothing is said: the account covers no such figure.
    """
    if node.config.privacy.on:
        raise Refusal("with privacy on, accuracies stay at the clients")
    task = read_task(content)
    method = _method(node, task)
    users, _, clients, gone = _here(node, task)
    asked = [i for i, c in enumerate(clients) if len(c.test)]
    gone |= {user: "no pair is held out" for i, user in enumerate(users) if i not in asked}
    fields = messages.evaluate_fields(inferences_of(method), node.config)
    if not asked:
        arrays = {k: torch.zeros(0, *f.shape, dtype=f.dtype) for k, f in fields.items()}
        return messages.write_reply(Reply((), arrays, gone), fields, {}, task.stamp)
    pool = node.pool(task.standardizer, task.rating_scale)
    panel = make_panel(node.data, [clients[i] for i in asked], node.config.seed, pool)
    predictor = method.predictor(read_clusters(content, task.download), pool)
    mask = panel.query_mask.double()
    context = panel.context_for(predictor, node.config.federation.context_pairs)
    accuracy = []
    for how in inferences_of(method):
        p = predictor.predict(predictor.infer(context, how, panel.groups), panel.query)
        accuracy.append(metrics.per_user(metrics.correct(p.double(), panel.query_y), mask))
    arrays = {"accuracy": torch.stack(accuracy, 1), "pairs": panel.query_mask.sum(1)}
    named = tuple(users[i] for i in asked)
    return messages.write_reply(Reply(named, arrays, gone), fields, declared.problems(arrays, fields), task.stamp)


def _here(node: Node, task: Task) -> tuple[tuple[str, ...], Tensor, list[Client], dict[str, str]]:
    """The task's users who are (still) here, their ids and pairs, and why others are not."""
    changed = _changed(node, task.training, task.users)
    found = [(user, i, node.client(user)) for user, i in zip(task.users, task.ids.tolist(), strict=True)]
    here = [(user, i, client) for user, i, client in found if client is not None and user not in changed]
    gone = {user: "the user is not here" for user, _, client in found if client is None}
    gone |= dict.fromkeys(sorted(changed), CHANGED)
    if not here:
        raise Refusal(CHANGED if changed else "none of the users is here")
    return tuple(u for u, _, _ in here), torch.tensor([i for _, i, _ in here]), [c for _, _, c in here], gone


def _changed(node: Node, training: str, users: Sequence[str]) -> set[str]:
    """Those of the users here whose data are others than when they first took part in the training."""
    changed = KnownData(node.state_dir, training).changed(node.fingerprints(users))
    if changed:
        remedy = "put the former data back, or begin a new training"
        print(f"error: the data of {len(changed)} users have changed since round 0; {remedy}", flush=True)
    return changed


def _same_features(node: Node, known_by: str) -> None:
    if known_by and node.known_by and known_by != node.known_by:
        raise Refusal("the features are those of other backbone files; give both ends one backbone")


def _counts(clients: Sequence[Client]) -> Tensor:
    """(users,) numbers of training examples."""
    return torch.tensor([examples(c) for c in clients])


def _method(node: Node, task: Task) -> Method:
    """The method with the task's sizes, if the task is one of its own model's."""
    method = node.method(class_of(node.config), task.clients, task.clusters)
    _same_features(node, task.features)
    check_task(task, method.init_server(generator(node.config.seed, "init")).theta, node.dim)
    return method
