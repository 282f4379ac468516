-- What the audit queue and its worker show of themselves.

CREATE VIEW stats AS SELECT * FROM queue_state();
COMMENT ON VIEW stats IS 'One row: the audit queue and worker of this database, since stats_reset or the server''s start. Without shared_preload_libraries is_preloaded is false and the numbers are NULL.';
COMMENT ON COLUMN stats.is_preloaded IS 'Whether shared_preload_libraries loads audit_ext: without it there is no queue and no worker.';
COMMENT ON COLUMN stats.worker_running IS 'Whether a worker is connected to this database. It leaves when there is nothing to do, and comes back by itself.';
COMMENT ON COLUMN stats.worker_restarts IS 'Workers started after one that ended otherwise than idle.';
COMMENT ON COLUMN stats.queue_bytes IS 'Size of the queue, which all databases share: audit.queue_size.';
COMMENT ON COLUMN stats.queue_used_bytes IS 'Bytes of it in use, by all databases.';
COMMENT ON COLUMN stats.queue_used_high_water IS 'The most bytes in use since the server started.';
COMMENT ON COLUMN stats.queue_depth IS 'Messages of this database that wait.';
COMMENT ON COLUMN stats.queue_high_water IS 'The most messages of this database that waited.';
COMMENT ON COLUMN stats.queue_queued IS 'Messages put into the queue.';
COMMENT ON COLUMN stats.queue_written IS 'Messages whose records are committed.';
COMMENT ON COLUMN stats.queue_lost IS 'Messages given up: the record can never be written, or the extension is gone.';
COMMENT ON COLUMN stats.queue_lag IS 'Time from the making of a message to its commit, of the oldest one of the last batch.';
COMMENT ON COLUMN stats.events_written IS 'Events written by the worker.';
COMMENT ON COLUMN stats.failures_recorded IS 'Failed statements recorded.';
COMMENT ON COLUMN stats.failures_lost IS 'Failed statements not recorded: the queue was full for too long.';
COMMENT ON COLUMN stats.logins_folded IS 'Refused logins that were recorded as one event with others.';
COMMENT ON COLUMN stats.logins_lost IS 'Logins not recorded: there was no room.';
COMMENT ON COLUMN stats.isolated_lost IS 'Isolated events that were not written: the queue was full for too long, or they could not be written.';
COMMENT ON COLUMN stats.isolated_late IS 'Isolated events that were not yet written after audit.isolated_timeout. They may have been since.';
COMMENT ON COLUMN stats.audit_errors IS 'Failures of auditing itself: attempts of the worker to write, and errors in sessions that are no fault of theirs.';
COMMENT ON COLUMN stats.stats_reset IS 'When audit.stats_reset was last called since the server started.';

COMMENT ON FUNCTION queue_state() IS 'The row of audit.stats.';
COMMENT ON FUNCTION stats_reset() IS 'Sets the numbers of audit.stats to zero, for this database.';
