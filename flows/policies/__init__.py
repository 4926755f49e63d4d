"""Policies by name: loaded, acting, trained as baselines and handed over."""
