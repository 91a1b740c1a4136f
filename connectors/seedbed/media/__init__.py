"""Pictures and video: fetched safely, decoded in processes of their own, brought to a model's size."""
