"""Scores networks as starting points for labelled tasks, from the networks' features and the tasks' labels."""

from jaxtransfer.scores.dissimilarity import parc as parc
from jaxtransfer.scores.evidence import logme as logme
from jaxtransfer.scores.fisher import sfda as sfda
from jaxtransfer.scores.mixture import nleep as nleep
from jaxtransfer.scores.pac_bayes import pactran as pactran
from jaxtransfer.scores.scatter import gbc as gbc
from jaxtransfer.scores.scatter import hscore as hscore
from jaxtransfer.scores.scatter import hscore_shrunk as hscore_shrunk
from jaxtransfer.scores.scatter import transrate as transrate
from jaxtransfer.scores.source_classes import leep as leep
from jaxtransfer.scores.source_classes import nce as nce
