"""What all configs start from: every key that is not an argument of a method, an encoder, a source or an evaluator."""

from typing import Any

from ml_collections import ConfigDict

from mmcl_jax.encoders.layers import SIZES


def base() -> ConfigDict:
    """The defaults. A config sets what its method needs; the command line sets the rest, --config.optim.lr=3e-4."""
    return ConfigDict(
        dict(
            seed=0,  # of initial weights, data order and augmentations
            steps=1000,
            batch=256,  # global, over all devices and processes
            # Parts in which each device encodes its rows, one after another: less memory, a third more work. What
            # dropout drops, if there is any, depends on it.
            chunks=1,
            dtype="float32",  # of the encoders' computation: float32 or bfloat16; parameters and losses are float32
            method=dict(name=""),  # and the arguments of its make()
            encoders=dict(),  # modality -> name of a file in mmcl_jax/encoders, and the arguments of its make()
            data=dict(
                # A source, or several by name; weight=2 lets one's records come twice as often. With mix="batches",
                # streams=("image", "text") says what batches of one hold.
                train=dict(),
                mix=None,  # of several sources: None = by records, "batches" = batches of one source each
                record="",  # ops on the whole record, before the streams
                eval_record=None,  # the same for evaluation; None = those of training
                streams=dict(),  # stream -> "field: host ops || device ops"
                eval_streams=dict(),  # the same for evaluation
                # Trained on the captions (fields after `record`) unless path names a saved one.
                tokenizer=dict(path="", vocab=8192, fields=("text",), lower=True),
                threads=2,  # that read and decode, a batch each; one is best for small pictures, more for photos
                cache_mib=0,  # memory of each process and worker for decoded examples: small sets are decoded once
                workers=0,  # processes that do so, instead of threads
                prefetch=4,  # batches
                fault_budget=0.05,  # stop when a larger share of the examples can't be read
            ),
            optim=dict(
                name="adamw",  # adamw, sgd, lars
                lr=1e-3,  # peak
                scaling="none",  # of lr by the batch: linear = times batch / 256, sqrt = times the batch's root
                warmup=100,  # steps from start_lr to the peak; then a cosine to end_lr
                warmup_inclusive=False,  # the last of these steps has the peak already, as in SLIP's code
                start_lr=0.0,
                end_lr=0.0,
                hold=1,  # steps for which a rate is held: an epoch's, for a cosine per epoch
                b1=0.9,  # adamw
                b2=0.98,
                eps=1e-6,
                momentum=0.9,  # sgd, lars
                trust=1e-3,  # lars: norm of an update, as a share of the weights' norm, at learning rate 1
                decay=0.1,  # adamw: multiplied by the learning rate; sgd, lars: added to the gradient
                no_decay=r"(bias|scale|class_token)$",  # paths of parameters that are not decayed, nor adapted by lars
                rules=(),  # "path regex: lr=0.1 decay=0"; lr=0 freezes. The first that matches counts.
                clip=1.0,  # of the gradient's global norm; 0 = off
                average=0.0,  # decay of the average of weights that is evaluated; 0 = off
            ),
            # Devices that hold copies of the weights x devices that share one. Shared is each weight's largest
            # dimension that divides, unless a rule says otherwise: "path regex: 0" (a dimension) or "path regex: none".
            mesh=dict(data=-1, fsdp=1, rules=()),
            # Form of the contrastive losses: shared_tile, chunked, ring; auto = the fastest that fits into the budget.
            loss=dict(impl="auto", budget_mib=512, chunk=1024),  # MiB a device; columns of a chunk
            init_from=dict(run="", rules=()),  # weights of another run; "path regex: new path" renames, "" drops
            max_bad_steps=10,  # stop after so many non-finite steps in a row
            profile=dict(steps=()),  # first and last step of a trace: 10,20
            log=dict(every=20, tensorboard=False, wandb=""),  # wandb: name of the project
            checkpoint=dict(every=500, keep=2),
            eval_every=0,  # steps; 0 = at the end only
            evals=dict(),  # name -> name of a file in mmcl_jax/evals, and the arguments of its run()
        )
    )


def variant(variants: dict[str, Any], arg: str, default: str) -> Any:
    """The variant that a config is asked for; "tiny" starts from the default.

    Raises:
        ValueError: if there is no such variant.
    """
    if arg not in (*variants, "", "tiny"):
        raise ValueError(f"Variant {arg!r}; possible: {', '.join(variants)}, tiny.")
    return variants[default if arg in ("", "tiny") else arg]


def width(size: str) -> int:
    """Features per token of a named size."""
    return SIZES[size][0]


HELD_OUT = dict(source="synthetic", size=256, split="test")


def tiny_run(c: ConfigDict, **data: Any) -> None:
    """Data, length and optimizer of a `:tiny` variant, whatever the method; `data` goes to the synthetic source."""
    c.data.train = dict(source="synthetic", size=1024, missing=0.05) | data
    c.data.record = ""
    c.dtype = "float32"
    c.data.update(threads=2, workers=0)
    c.batch, c.steps = 64, 120
    c.optim.update(name="adamw", lr=3e-3, scaling="none", warmup=10, hold=1, b2=0.98, clip=1.0, decay=0.01, rules=())
    c.log.every, c.checkpoint.every, c.eval_every = 10, 50, 0


def tiny_tower(tower: ConfigDict) -> None:
    """Makes an encoder as small as it can be."""
    if tower.name == "resnet":
        tower.update(size="mu", width=16, stem="small", bn_groups=4)
        return
    tower.update(size="mu", width=32, depth=2, heads=2, mlp=64, remat="none", scan=False)
    if tower.name == "vit":
        tower.patch = 4


def tiny(c: ConfigDict) -> ConfigDict:
    """Turns a config of an image-text method into its `:tiny` variant: synthetic data, two layers, a minute."""
    with c.unlocked():
        tiny_run(c)
        sot = ", sot=False" if c.encoders.text.get("pool") == "last" else ""
        text = f"tokenize(12{sot})"
        c.data.streams = dict(image="decode|crop(16, scale=(.7, 1)) || normalize", text=f"captions: pick|{text}")
        c.data.eval_streams = dict(image="decode || normalize", text=f"captions: first|{text}")
        c.data.tokenizer.fields = ("captions",)
        c.data.tokenizer.vocab = c.encoders.text.vocab = 400
        for tower in (c.encoders.image, c.encoders.text):
            tiny_tower(tower)
        c.method.embed_dim = 32
        if "bias_init" in c.method:
            c.method.bias_init = -4.0  # for a batch of 64; see configs/siglip_emoji.py
        c.evals = dict(
            val=dict(name="retrieval", data=HELD_OUT),
            zeroshot=dict(name="zeroshot", data=HELD_OUT, templates=("a {}",)),
        )
    return c
