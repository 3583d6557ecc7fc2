from . import phantom as phantom
from .anatomy.landmarks import Landmarks as Landmarks
from .api.evaluation import evaluate as evaluate
from .api.scans import Result as Result
from .api.scans import find_landmarks as find_landmarks
from .api.scans import read_scan as read_scan
from .api.scans import register_scans as register_scans
from .api.transform import Transform as Transform
from .api.transform import read_transform as read_transform
from .cohort.cohort import Cohort as Cohort
from .cohort.cohort import read_cohort as read_cohort
from .core import fields as fields
from .core import landmarks as landmarks
from .core import objective as objective
from .core import prior as prior
from .core import similarity as similarity
from .errors import InputError as InputError
from .io.points import read_points as read_points
from .io.points import write_points as write_points
from .io.scan import Scan as Scan
from .model.registrar import Registrar as Registrar
from .model.registrar import Registration as Registration
from .model.registrar import load as load

__version__: str
