"""The page: a video and sentences in, masks to look at and to keep out. Only `glus.app.page` needs gradio."""
