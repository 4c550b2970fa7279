"""`fedvpa serve`: a run's selector over HTTP. `app.create_app` is the service, `running.serve` its process."""
