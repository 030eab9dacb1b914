"""A result as one HTML page that needs no network: the network drawn by depth, plots, tables, the certificate."""

from bnfold.page.document import page
from bnfold.page.sections import for_fold, for_insert, for_inspect, for_recalibrate, for_verify

__all__ = ["for_fold", "for_insert", "for_inspect", "for_recalibrate", "for_verify", "page"]
