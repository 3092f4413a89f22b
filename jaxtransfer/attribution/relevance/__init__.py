"""Epsilon-LRP of any JAX function, by rewriting its jaxpr; see `docs/attribution.md` for every rule."""

from jaxtransfer.attribution.relevance._rewrite import RuleVJP as RuleVJP
from jaxtransfer.attribution.relevance._rewrite import rule_vjp as rule_vjp
from jaxtransfer.attribution.relevance._rewrite import unbounded_ratios as unbounded_ratios

RULES = 2
"""Version of the rules: maps of different versions cannot be compared."""
