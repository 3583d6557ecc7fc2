"""Where the template's vessels and airways run: tables of centrelines in template mm.

Placed by hand after anatomical atlases: lobar and segmental branches by Boyden's names. What lies
below the segments is grown (`trees`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Chain = NDArray[np.float64]


def chain(*rows: tuple[float, float, float, float]) -> Chain:
    """Rows (x, y, z, radius) in mm of a tube's centreline."""
    return np.asarray(rows, float)


SYSTEMIC: dict[str, Chain] = {
    "aorta": chain(
        (4, 36, -48, 15),
        (16, 40, -32, 15.5),
        (21, 38, -12, 15),
        (19, 37, 10, 14.5),
        (8, 37, 27, 14),
        (-9, 31, 34, 13.5),
        (-24, 16, 35, 13),
        (-30, -4, 31, 12.5),
        (-31, -22, 20, 12.2),
        (-28, -33, 4, 12),
        (-25, -36, -30, 11.5),
        (-22, -37, -70, 11.5),
        (-15, -30, -120, 11),
        (-8, -18, -165, 10.5),
        (-4, -6, -210, 10),
        (-3, 2, -270, 9.5),
    ),
    "brachiocephalic_artery": chain(
        (4, 36, 36, 6.5),
        (13, 34, 52, 6.2),
        (20, 28, 72, 5.8),
        (23, 24, 100, 3.8),
        (24, 22, 140, 3.4),
        (25, 22, 190, 3.2),
    ),
    "right_subclavian": chain(
        (20, 28, 72, 5),
        (36, 18, 88, 4.8),
        (62, 16, 92, 4.6),
        (100, 20, 82, 4.4),
        (150, 16, 92, 4),
    ),
    "left_carotid": chain(
        (-11, 31, 38, 4.5),
        (-18, 27, 62, 4.2),
        (-22, 24, 95, 3.8),
        (-24, 22, 140, 3.4),
        (-25, 22, 190, 3.2),
    ),
    "left_subclavian": chain(
        (-26, 10, 38, 5.5),
        (-29, 8, 62, 5.2),
        (-38, 12, 86, 5),
        (-62, 16, 92, 4.6),
        (-100, 20, 82, 4.4),
        (-150, 16, 92, 4),
    ),
    "superior_vena_cava": chain(
        (30, 28, -52, 10),
        (30, 30, -25, 9.5),
        (31, 28, 0, 9),
        (30, 30, 25, 8.5),
        (28, 33, 46, 8),
    ),
    "right_brachiocephalic_vein": chain(
        (28, 33, 46, 7),
        (32, 30, 66, 6.5),
        (36, 28, 84, 6),
        (34, 26, 120, 5.5),
        (36, 24, 190, 5),
    ),
    "left_brachiocephalic_vein": chain(
        (28, 33, 46, 6.5),
        (11, 46, 50, 6),
        (-12, 46, 58, 6),
        (-32, 38, 72, 6),
        (-36, 28, 86, 5.5),
        (-34, 26, 120, 5),
        (-36, 24, 190, 5),
    ),
    "azygos_vein": chain(
        (30, 18, 14, 4.5),
        (25, 2, 18, 4.5),
        (14, -18, 12, 4.2),
        (7, -27, -8, 3.8),
        (5, -31, -60, 3.2),
        (5, -25, -120, 2.8),
        (5, -12, -180, 2.4),
    ),
    "inferior_vena_cava": chain(
        (28, 18, -92, 11),
        (28, 12, -118, 11.5),
        (26, 4, -150, 11.5),
        (22, 2, -200, 11),
        (18, 4, -270, 11),
    ),
}
OESOPHAGUS = chain(
    (-1, 16, 150, 6),
    (-3, 8, 100, 6.5),
    (-5, -6, 50, 7),
    (-5, -17, 10, 7.5),
    (-3, -22, -30, 7.5),
    (-6, -18, -90, 8),
    (-14, -6, -125, 8.5),
    (-26, 4, -152, 9),
)
COLON = chain(
    (-104, -22, -262, 20),
    (-110, 6, -222, 21),
    (-98, 40, -206, 21),
    (-64, 66, -226, 20),
    (-20, 72, -246, 21),
    (30, 72, -250, 21),
    (80, 56, -262, 22),
)
TRACHEA = chain(
    (0, 40, 205, 8),
    (0, 37, 150, 8.2),
    (0, 33, 120, 9),
    (1, 27, 92, 9),
    (1.5, 21, 69, 9),
    (1.5, 14.5, 46, 9),
    (1, 7.5, 23, 9),
    (0, 0, 0, 8.6),
)
HILA = (
    chain((0, 0, 0, 9), (14, -5, -20, 9), (22, -6, -45, 8), (28, -9, -58, 6)),
    chain((0, 0, 0, 9), (-20, -4, -15, 9), (-38, -10, -26, 8), (-45, -17, -42, 7)),
    chain((-16, 24, -16, 14), (4, 14, -20, 12), (24, 10, -21, 11), (38, 2, -34, 9.5)),
    chain((-16, 24, -16, 14), (-30, 10, -6, 12), (-38, -4, -3, 11), (-47, -17, -12, 9)),
    chain((10, 6, -48, 10), (27, 12, -43, 8), (41, 16, -38, 6)),
    chain((8, -4, -60, 9), (18, -17, -73, 7), (24, -24, -80, 6)),
    chain((-18, 6, -48, 10), (-32, 12, -38, 8), (-44, 16, -31, 6)),
    chain((-16, -4, -60, 9), (-26, -16, -70, 7), (-34, -26, -78, 6)),
)

# child: (parent, end x, y, z, radius). Radii of bronchi are those of the lumen, mm.
AIRWAYS: dict[str, tuple[str, float, float, float, float]] = {
    "larynx": ("", 0, 37, 150, 8.2),
    "trachea_0": ("larynx", 0, 33, 120, 9.0),
    "trachea_1": ("trachea_0", 1, 27, 92, 9.0),
    "trachea_2": ("trachea_1", 1.5, 21, 69, 9.0),
    "trachea_3": ("trachea_2", 1.5, 14.5, 46, 9.0),
    "trachea_4": ("trachea_3", 1, 7.5, 23, 9.0),
    "carina": ("trachea_4", 0, 0, 0, 8.6),
    "right_upper_lobe_bronchus": ("carina", 14, -5, -20, 7.0),
    "right_upper": ("right_upper_lobe_bronchus", 31, -7, -14, 5.0),
    "right_middle_lobe_bronchus": ("right_upper_lobe_bronchus", 22, -6, -45, 5.6),
    "right_middle": ("right_middle_lobe_bronchus", 40, 10, -57, 3.6),
    "right_superior_segment": ("right_middle_lobe_bronchus", 25, -11, -53, 5.0),
    "right_basal": ("right_superior_segment", 34, -17, -72, 4.4),
    "left_upper_lobe_bronchus": ("carina", -38, -10, -26, 6.3),
    "left_upper": ("left_upper_lobe_bronchus", -50, -2, -22, 4.9),
    "left_upper_division": ("left_upper", -56, 2, -10, 4.0),
    "lingula": ("left_upper", -60, 16, -34, 3.5),
    "left_superior_segment": ("left_upper_lobe_bronchus", -43, -16, -38, 5.0),
    "left_basal": ("left_superior_segment", -50, -21, -62, 4.4),
}
# segment: (parent, lobe label, centre of its territory)
SEGMENTS: dict[str, tuple[str, int, tuple[float, float, float]]] = {
    "RB1": ("right_upper", 3, (56, -10, 72)),
    "RB2": ("right_upper", 3, (72, -52, 32)),
    "RB3": ("right_upper", 3, (66, 40, 6)),
    "RB4": ("right_middle", 4, (98, 30, -68)),
    "RB5": ("right_middle", 4, (58, 60, -84)),
    "RB6": ("right_superior_segment", 5, (62, -60, -20)),
    "RB7": ("right_basal", 5, (36, -14, -112)),
    "RB8": ("right_basal", 5, (92, 6, -112)),
    "RB9": ("right_basal", 5, (96, -42, -118)),
    "RB10": ("right_basal", 5, (54, -68, -126)),
    "LB1+2": ("left_upper_division", 1, (-58, -22, 64)),
    "LB3": ("left_upper_division", 1, (-66, 38, 12)),
    "LB4": ("lingula", 1, (-100, 30, -42)),
    "LB5": ("lingula", 1, (-82, 62, -74)),
    "LB6": ("left_superior_segment", 2, (-64, -60, -18)),
    "LB8": ("left_basal", 2, (-92, 4, -114)),
    "LB9": ("left_basal", 2, (-96, -42, -122)),
    "LB10": ("left_basal", 2, (-56, -68, -130)),
}
ARTERIES: dict[str, tuple[str, float, float, float, float]] = {
    "outflow": ("", -14, 58, -52, 14.0),
    "trunk": ("outflow", -22, 46, -32, 13.5),
    "pulmonary_trunk": ("trunk", -16, 24, -16, 13.0),
    "right_behind_aorta": ("pulmonary_trunk", 4, 14, -20, 10.5),
    "right_pulmonary_artery": ("right_behind_aorta", 24, 10, -21, 9.5),
    "right_anterior_trunk": ("right_pulmonary_artery", 38, 5, -8, 5.4),
    "right_interlobar": ("right_pulmonary_artery", 38, 2, -36, 8.0),
    "right_middle_artery": ("right_interlobar", 49, 13, -50, 4.0),
    "right_lower_artery": ("right_interlobar", 38, -6, -54, 7.0),
    "right_basal_artery": ("right_lower_artery", 45, -8, -66, 6.0),
    "left_pulmonary_artery": ("pulmonary_trunk", -37, -2, -3, 10.0),
    "left_upper_artery": ("left_pulmonary_artery", -48, -8, 9, 5.2),
    "left_interlobar": ("left_pulmonary_artery", -51, -19, -16, 8.0),
    "left_lingular_artery": ("left_interlobar", -66, 10, -32, 4.0),
    "left_lower_artery": ("left_interlobar", -58, -16, -42, 7.0),
    "left_basal_artery": ("left_lower_artery", -62, -15, -60, 6.0),
}
ARTERY_OF_BRONCHUS = {
    "right_upper": "right_anterior_trunk",
    "right_middle": "right_middle_artery",
    "right_superior_segment": "right_lower_artery",
    "right_basal": "right_basal_artery",
    "left_upper_division": "left_upper_artery",
    "lingula": "left_lingular_artery",
    "left_superior_segment": "left_lower_artery",
    "left_basal": "left_basal_artery",
}
# stem: (start, end, radius, lobes drained)
VEINS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, tuple[int, ...]]] = {
    "right_superior_vein": ((10, 6, -48), (43, 17, -37), 6.2, (3, 4)),
    "right_inferior_vein": ((8, -4, -60), (26, -26, -82), 6.6, (5,)),
    "left_superior_vein": ((-18, 6, -48), (-46, 17, -30), 6.2, (1,)),
    "left_inferior_vein": ((-16, -4, -60), (-36, -28, -80), 6.6, (2,)),
}
