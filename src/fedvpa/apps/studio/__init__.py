"""`fedvpa studio`: a local web page on which a person teaches the selector a preference and switches it.

`world` is what the page knows of a run; `teaching`, `judging`, `writing` and `latent_map` are the logic without a page;
`picture` and `pieces` turn it into HTML, `page` puts it together (Gradio), `serving` answers requests.
"""
