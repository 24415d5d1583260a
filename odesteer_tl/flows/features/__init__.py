"""Features φ(a): recipes that are fitted to samples, and the complete maps that they become."""

from odesteer_tl.flows.features.base import (
    FeatureMap,
    Linear,
    Recipe,
    Reduced,
    Squares,
    check_fitted_map,
    check_recipe,
    features_of,
    fit_to_sides,
)
from odesteer_tl.flows.features.fourier import Fourier, RandomFourier
from odesteer_tl.flows.features.polynomial import Kernel, Polynomial
from odesteer_tl.flows.features.sketch import PolynomialSketch, Sketch
from odesteer_tl.portable.integrate import norm

__all__ = [
    "FeatureMap",
    "Fourier",
    "Kernel",
    "Linear",
    "Polynomial",
    "PolynomialSketch",
    "RandomFourier",
    "Recipe",
    "Reduced",
    "Sketch",
    "Squares",
    "check_fitted_map",
    "check_recipe",
    "features_of",
    "fit_to_sides",
    "norm",
]
