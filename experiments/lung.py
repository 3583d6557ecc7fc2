"""Lung CT, landmark-constrained. One value a line, with its unit or its equation.

python -m experiments.train --config=experiments/lung.py          quick default, embedded cohort
python -m experiments.train --config=experiments/lung.py:paper    the setting of [Hu]
... --config=experiments/lung.py:paper_coarse                     its recipe, on the coarse grid
... --config.data.root=DIR                                        your own CTs and landmarks
... --config.objective.landmark_weight=0                          any value, by its name

Why the quick default has the values that it has: benchmarks/results/ablations.md and recipes.md.
"""

from ml_collections import ConfigDict

from lmreg_jax.errors import InputError

VARIANTS = ("", "paper", "paper_coarse")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise InputError(f"experiments/lung.py:{variant}: the variants are {', '.join(VARIANTS[1:])} or none")
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.root = ""  # folder of a cohort; empty: the embedded procedural thorax
    config.data.cases = 40  # of the embedded cohort
    config.data.test = 10  # of them held out
    config.data.seed = 0  # generates the embedded cohort, picks the validation cases
    config.data.validation = 0.1  # share of the training cases set apart, where the table names none
    config.data.shape = (48, 32, 64)  # X, Y, Z voxels of the common grid; multiples of 16 pad nothing
    config.data.spacing_mm = 7.0  # a number; in a config file also (x, y, z)
    config.data.window = (-1000.0, 400.0)  # to [0, 1]; HU, or percentiles
    config.data.window_kind = "hu"  # hu | percentile
    config.data.landmark_names = ()  # empty: all that the cohort has
    config.data.alignment = "auto"  # auto | images | elastix | moments | none | identity
    config.data.lungs = "auto"  # masks: auto | file | segment | none
    config.data.reference = ""  # case that all are aligned to; empty: the most central training case
    config.data.cache = ""  # folder for the cohort read; empty: a folder in the user's cache
    config.data.memory_gb = 4.0  # for decoded cases, a process; what does not fit is read again
    config.data.policy = "strict"  # a case that cannot be read: strict (stop) | skip (go on without it)
    config.data.allow_outside_root = False  # may the table's paths leave its folder?

    config.model = ConfigDict()
    config.model.encoder = (16, 32, 32, 32)  # features at 1/2, 1/4, 1/8, 1/16
    config.model.decoder = (32, 32, 32, 32)  # features from the coarsest grid up
    config.model.final = (16,)  # at the grid of the field
    config.model.field_stride = 2  # image voxels a field voxel
    config.model.normalisation = "instance"  # none (paper) | instance
    config.model.inputs = "forces"  # images (paper) | forces: and the demons' force between them
    config.model.passes = 3  # of the network, each to the image as the last one left it (paper: 1)
    config.model.dtype = "float32"  # of the features: float32 | bfloat16

    config.init = ConfigDict()
    config.init.weights = ""  # Keras HDF5 file of [Dalca], or the folder of an earlier training

    config.objective = ConfigDict()  # eq. 7
    config.objective.reading = "voxelmorph"  # voxelmorph | exact
    config.objective.precision = 10.0  # lambda
    config.objective.image = "ssd"  # ssd (eq. 3) | lncc | lncc5
    config.objective.image_sigma = 0.03  # standard deviation of the intensities; [Hu], [Dalca]: 0.02
    config.objective.landmark_sigma = 1.0  # in landmark_unit
    config.objective.landmark_unit = "voxel"  # voxel | mm
    config.objective.landmark_weight = 5.0  # 0: VoxelMorph, 1: [Hu]; more costs overlap
    config.objective.integration_steps = 7  # squarings

    config.train = ConfigDict()
    config.train.seed = 0  # draws the initial weights, the pairs and the velocities
    config.train.steps = 1500
    config.train.pairs_per_batch = 2  # over all devices
    config.train.both_orders = True  # (a, b) and (b, a) in one batch: their translations cancel
    config.train.learning_rate = 3e-3  # of Adam
    config.train.schedule = "cosine"  # constant (paper) | cosine
    config.train.warmup_steps = 20
    config.train.clip_norm = 0.0  # of the whole gradient; 0: off
    config.train.rematerialise = False  # compute features again in the backward pass: slower, smaller
    config.train.validate_every = 250  # steps
    config.train.checkpoint_every = 250
    config.train.keep = 2  # latest checkpoints
    config.train.log_every = 10
    config.train.max_skipped = 5  # steps in a row with a non-finite loss or gradient

    # All 0 in the paper. Shared: another anatomy, seen twice, without more misalignment to undo.
    config.augment = ConfigDict()
    config.augment.rotation_deg = 3.0  # standard deviations of a random map, a pair
    config.augment.scale = 0.03
    config.augment.translation_mm = 4.0
    config.augment.elastic_mm = 4.0  # of a smooth displacement, at nodes 60 mm apart
    config.augment.shared = True  # one geometric change for both images of a pair

    if variant:
        config.model.normalisation = "none"
        config.model.inputs = "images"
        config.model.passes = 1
        config.objective.image_sigma = 0.02
        config.objective.landmark_weight = 1.0
        config.augment.update(rotation_deg=0.0, scale=0.0, translation_mm=0.0, elastic_mm=0.0)
        config.augment.shared = False
        config.train.pairs_per_batch = 1
        config.train.both_orders = False
        config.train.learning_rate = 1e-4
        config.train.schedule = "constant"
        config.train.warmup_steps = 0
    if variant == "paper":
        config.data.shape = (160, 112, 208)
        config.data.spacing_mm = 2.0
        config.train.steps = 100_000
        config.train.validate_every = 2_000
        config.train.checkpoint_every = 500
    return config
