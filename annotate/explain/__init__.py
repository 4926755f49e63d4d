"""Why a request was asked anew."""
