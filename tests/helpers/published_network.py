"""The published DeLA v2 forward pass in float64, written from its description alone.

Independent of dela's networks: it reads a state_dict under the published names and takes the
published index list (kNN of every stage with the sub-sampling rows between, then the way back,
deepest first). Also fabricates state_dicts and index lists of any size.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def published_shapes(dims, depths, classes, head_dim=None, attributes="ch", cor_head=True):
    """Name -> shape of a published state_dict; no head_dim: classification."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name, dim):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (dim,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def aggregation(name, dim_in, dim):
        shapes[f"{name}.coor"], shapes[f"{name}.scale"] = (3 * dim // 4,), (dim // 4,)
        shapes[f"{name}.proj.weight"] = (dim, dim_in)
        norm(f"{name}.bn", dim)

    def mlp(name, dim):
        shapes[f"{name}.mlp.0.weight"], shapes[f"{name}.mlp.0.bias"] = (2 * dim, dim), (2 * dim,)
        shapes[f"{name}.mlp.2.weight"] = (dim, 2 * dim)
        norm(f"{name}.mlp.3", dim)

    c = dims[0]
    for d, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        p = "stage." + "sub_stage." * d
        if d == 0 or (d == 1 and head_dim):
            shapes[f"{p}spse_m"] = (10 * c,)
        if d == 0 and head_dim:
            for letter, rows in (("c", 3), ("h", 1), ("n", 3)):
                if letter in attributes:
                    shapes[f"{p}spse_{letter}"] = (rows * c,)
        norm(f"{p}nbr_bn", dim)
        norm(f"{p}nbr_proj.0", c)
        shapes[f"{p}nbr_proj.1.weight"], shapes[f"{p}nbr_proj.1.bias"] = (2 * c, c), (2 * c,)
        shapes[f"{p}nbr_proj.3.weight"] = (dim, 2 * c)
        if d:
            aggregation(f"{p}lfp", dims[d - 1], dim)
            shapes[f"{p}skip_proj.0.weight"] = (dim, dims[d - 1])
            norm(f"{p}skip_proj.1", dim)
        for i in range(depth):
            aggregation(f"{p}blk.lfps.{i}", dim, dim)
        mlp(f"{p}blk.mlp", dim)
        for i in range(depth // 2):
            mlp(f"{p}blk.mlps.{i}", dim)
        if head_dim:
            norm(f"{p}postproj.0", dim)
            shapes[f"{p}postproj.1.weight"] = (head_dim, dim)
        if cor_head:
            shapes[f"{p}cor_head.0.weight"] = (32, dim)
            norm(f"{p}cor_head.1", 32)
            shapes[f"{p}cor_head.3.weight"] = (3, 32)
    width = head_dim or 2 * dims[-1]
    norm("head.0", width)
    last = "head.2" if head_dim else "head.1"
    shapes[f"{last}.weight"], shapes[f"{last}.bias"] = (classes, width), (classes,)
    return shapes


def fabricate(shapes, seed=0):
    """A state_dict of these shapes with values a trained network could have."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=g)
        if name.endswith("num_batches_tracked"):
            x = torch.tensor(1000)
        elif name.endswith("running_var"):
            x = 0.5 + torch.rand(shape, generator=g)
        elif name.endswith("spse_m"):
            rows = x.view(-1, 10)
            rows[:, 3:6] = 0.2 + 0.8 * torch.rand(len(rows), 3, generator=g)
            rows[:, 9] = np.pi * torch.rand(len(rows), generator=g)
        elif name.endswith(".scale"):
            x = 0.1 + 0.4 * torch.rand(shape, generator=g)
        elif len(shape) == 2:
            x = x / shape[1] ** 0.5
        elif name.endswith("weight"):
            x = 0.5 + 0.2 * x
        elif name.endswith("bias") or name.endswith("running_mean"):
            x = 0.2 * x
        state[name] = x
    return state


def heap_order_knn(points, k, rng):
    """k nearest, the farthest first and the rest in no order, as a binary heap leaves them."""
    distances = ((points[:, None].astype(np.float64) - points) ** 2).sum(-1)
    table = np.argsort(distances, axis=1)[:, :k]
    table = np.concatenate([table[:, -1:], rng.permuted(table[:, :-1], axis=1)], axis=1)
    return table.astype(np.int32)


def index_list(points, counts, ks, rng):
    """[knn1, sub1, knn2, ..., back_L, ..., back_2] of one cloud."""
    indices, back, here = [heap_order_knn(points, ks[0], rng)], [], points
    for count, k in zip(counts[1:], ks[1:], strict=True):
        sub = rng.permutation(len(here))[:count].astype(np.int64)
        here = here[sub]
        indices += [sub, heap_order_knn(here, k, rng)]
        nearest = ((points[:, None].astype(np.float64) - here) ** 2).sum(-1).argmin(1)
        back.insert(0, nearest.astype(np.int32))
    return indices + back


def prepare_m(m):
    m = m.view(-1, 10)
    b, s, axis, angle = m[:, :3], m[:, 3:6], m[:, 6:9], m[:, 9]
    axis = axis / axis.norm(dim=1, keepdim=True).clamp_min(1e-12)
    a = m.new_zeros(len(m), 3, 3)
    a[:, 0, 1], a[:, 0, 2], a[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    a[:, 1, 0], a[:, 2, 0], a[:, 2, 1] = axis[:, 2], -axis[:, 1], axis[:, 0]
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    matrix = (a * sin + a @ a * (1 - cos) + torch.eye(3).to(m)) @ torch.diag_embed(s)
    return matrix, b


def spse(l, knn, m, feature=None, w=None, normal=None, n=None):  # noqa: E741
    matrix, b = m
    delta = l[knn] - l[:, None]
    q = torch.einsum("nkcr,cra->nkca", delta[:, :, None] - b, matrix)
    d = q.square().sum(-1) + (1e-8 if normal is None else 1 + 1e-4)
    if feature is not None:
        d = d + (feature[knn][:, :, None] - w.t()).square().sum(-1)
    if normal is not None:
        d = d + normal[knn] @ n
    return d.min(1)[0].sqrt()


class Published:
    """One forward pass. ``kept_rows_norm`` normalizes a downsampling aggregation over the rows it
    keeps instead of all; both agree in evaluation."""

    def __init__(self, state, spread, training=False, kept_rows_norm=True):
        self.state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
        self.state = {
            k: v.requires_grad_("running" not in k and v.is_floating_point())
            for k, v in self.state.items()
        }
        self.spread, self.training, self.kept_rows_norm = spread, training, kept_rows_norm
        self.shared = None

    def bn(self, name, x):
        s = self.state
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]

    def linear(self, name, x):
        y = x @ self.state[f"{name}.weight"].t()
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def mlp(self, name, x):
        x = self.linear(f"{name}.2", F.gelu(self.linear(f"{name}.0", x)))
        return self.bn(f"{name}.3", x)

    def lfp(self, name, x, l, knn, kept=None):  # noqa: E741
        f = self.linear(f"{name}.proj", x)
        center, s = self.state[f"{name}.coor"].view(-1, 3), self.state[f"{name}.scale"] ** 2
        delta = l[knn] - l[:, None]
        dist = 1e-8 + (delta[:, :, None] - center).square().sum(-1)
        value = (f[knn] - f[:, None]) * torch.exp(-dist * s).repeat_interleave(4, -1)
        out = value.max(1)[0]
        if kept is None:
            return self.bn(f"{name}.bn", out)
        if self.kept_rows_norm:
            return self.bn(f"{name}.bn", out[kept])
        return self.bn(f"{name}.bn", out)[kept]

    def blk(self, name, x, l, knn):  # noqa: E741
        x = x + self.mlp(f"{name}.mlp.mlp", x)
        depth = sum(f"{name}.lfps.{i}.coor" in self.state for i in range(64))
        for i in range(depth):
            x = x + self.lfp(f"{name}.lfps.{i}", x, l, knn)
            if i % 2 == 1:
                x = x + self.mlp(f"{name}.mlps.{i // 2}.mlp", x)
        return x

    def encode(self, z, feature, normal, knns, subs):
        """Features of every stage; appends (name, x, z, knn) per stage to ``self.trail``."""
        self.trail = []
        x = l = None  # noqa: E741
        for d, knn in enumerate(knns):
            p = "stage." + "sub_stage." * d
            if d:
                sub = subs[d - 1]
                x = self.bn(f"{p}skip_proj.1", self.linear(f"{p}skip_proj.0", x))[sub] + self.lfp(
                    f"{p}lfp", x, l, knns[d - 1], sub
                )
                z = z[sub]
            l = z * (1 / self.spread[d])  # noqa: E741
            if f"{p}spse_m" in self.state:
                self.shared = prepare_m(self.state[f"{p}spse_m"])
            extra = {}
            if d == 0 and feature is not None:
                c = self.shared[1].shape[0]
                rows = [
                    self.state[k].view(-1, c)
                    for k in (f"{p}spse_c", f"{p}spse_h")
                    if k in self.state
                ]
                extra = {"feature": feature, "w": torch.cat(rows)}
            if d == 0 and normal is not None:
                n = self.state[f"{p}spse_n"].view(3, -1)
                extra |= {"normal": normal, "n": n / n.norm(dim=0, keepdim=True).clamp_min(1e-12)}
            nbr = self.bn(f"{p}nbr_proj.0", spse(l, knn, self.shared, **extra))
            nbr = self.linear(f"{p}nbr_proj.3", F.gelu(self.linear(f"{p}nbr_proj.1", nbr)))
            nbr = self.bn(f"{p}nbr_bn", nbr)
            x = nbr if d == 0 else nbr + x
            x = self.blk(f"{p}blk", x, l, knn)
            self.trail.append((p, x, z, knn))
        return [x for _, x, _, _ in self.trail]

    def closs(self):
        total = 0.0
        for d, (p, x, z, knn) in reversed(list(enumerate(self.trail))):
            pick = torch.gather(knn, 1, torch.randint(knn.shape[1], (len(knn), 1))).squeeze(1)
            y = F.gelu(self.bn(f"{p}cor_head.1", self.linear(f"{p}cor_head.0", x[pick] - x)))
            target = (z[pick] - z) / self.spread[d]
            total = total + F.mse_loss(self.linear(f"{p}cor_head.3", y), target)
        return total

    def segmentation(self, xyz, indices, feature=None, normal=None):
        """Logits [N, classes]; xyz [N, 3] already times the coordinate scale."""
        stages = (len(indices) + 2) // 3
        tables = [torch.as_tensor(i).long() for i in indices]
        xs = self.encode(
            xyz.double(),
            None if feature is None else feature.double(),
            None if normal is None else normal.double(),
            [tables[2 * d] for d in range(stages)],
            [tables[2 * d - 1] for d in range(1, stages)],
        )
        total = 0.0
        for d, x in enumerate(xs):
            p = "stage." + "sub_stage." * d
            y = self.linear(f"{p}postproj.1", self.bn(f"{p}postproj.0", x))
            total = total + (y[tables[2 * stages - 1 + (stages - 1 - d)]] if d else y)
        return self.linear("head.2", F.gelu(self.bn("head.0", total)))

    def classification(self, xyz, counts, ks):
        """Logits [B, classes]; xyz [B, N, 3] scaled, already in sampling order."""
        batch, first = xyz.shape[0], counts[0]
        xyz = xyz.double()
        square = xyz.square().sum(-1)
        pwd = square[:, :, None] + square[:, None] - 2 * xyz @ xyz.transpose(1, 2)
        knns, subs = [], []
        for d, (n, k) in enumerate(zip(counts, ks, strict=True)):
            table = pwd[:, :n, :n].topk(k, dim=-1, largest=False)[1]
            knns.append((table + n * torch.arange(batch)[:, None, None]).view(-1, k))
            if d:
                rows = torch.arange(n) + counts[d - 1] * torch.arange(batch)[:, None]
                subs.append(rows.view(-1))
        x = self.encode(xyz[:, :first].reshape(-1, 3), None, None, knns, subs)[-1]
        self.tables = knns, subs
        x = x.view(batch, counts[-1], -1)
        pooled = torch.cat([x.mean(1), x.std(1, unbiased=True)], dim=1)
        return self.linear("head.1", self.bn("head.0", pooled))
