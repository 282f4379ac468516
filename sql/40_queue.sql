-- What is on its way through the audit queue, and what queue and worker show of themselves.

CREATE TABLE in_transit (
    incarnation bigint      NOT NULL,
    number      bigint      NOT NULL,
    queued_at   timestamptz NOT NULL,
    events      int         NOT NULL,
    tables      text[]      NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 1000000000);
COMMENT ON TABLE in_transit IS 'Committed transactions whose events of async tables are not written yet: a row from the commit until the worker has written them. A row that is older than the server''s start tells of events that are lost.';
COMMENT ON COLUMN in_transit.incarnation IS 'The server''s run: when it made the queue, in microseconds since 2000-01-01.';
COMMENT ON COLUMN in_transit.number IS 'Number of the message.';
COMMENT ON COLUMN in_transit.queued_at IS 'When the transaction began to commit.';
COMMENT ON COLUMN in_transit.events IS 'Number of events.';
COMMENT ON COLUMN in_transit.tables IS 'Tables that they are about: at least those, at most a hundred.';
REVOKE ALL ON in_transit FROM PUBLIC;

CREATE VIEW stats AS
    SELECT s.*, f.failures_by_class, u.changesets AS unsealed_changesets, clock_timestamp() - u.oldest AS seal_lag
      FROM queue_state() s
     CROSS JOIN (SELECT jsonb_object_agg(class, failures) AS failures_by_class FROM failure_classes()) f
     CROSS JOIN unsealed() u;
COMMENT ON VIEW stats IS 'One row: the audit queue and worker of this database, since stats_reset or the server''s start. Without shared_preload_libraries is_preloaded is false and the numbers but for those of sealing are NULL.';
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
COMMENT ON COLUMN stats.queue_fallbacks IS 'Transactions whose events of async tables were written by the session: the queue was full, or they were prepared or too large for it.';
COMMENT ON COLUMN stats.queue_lag IS 'Time from the making of a message to its commit, of the oldest one of the last batch.';
COMMENT ON COLUMN stats.events_written IS 'Events written by the worker.';
COMMENT ON COLUMN stats.events_lost IS 'Events of async tables that the last run of the server lost, as the event audit.events_lost tells.';
COMMENT ON COLUMN stats.session_time IS 'Time that sessions spent on auditing in transactions that committed, while audit.track_timing was on.';
COMMENT ON COLUMN stats.worker_time IS 'Time that the worker spent writing.';
COMMENT ON COLUMN stats.failures_by_class IS 'Failed statements recorded, by the first two characters of their SQLSTATE: an object of numbers.';
COMMENT ON COLUMN stats.failures_recorded IS 'Failed statements recorded.';
COMMENT ON COLUMN stats.failures_lost IS 'Failed statements not recorded: the queue was full for too long.';
COMMENT ON COLUMN stats.logins_folded IS 'Refused logins that were recorded as one event with others.';
COMMENT ON COLUMN stats.logins_lost IS 'Logins not recorded: there was no room.';
COMMENT ON COLUMN stats.isolated_lost IS 'Isolated events that were not written: the queue was full for too long, or they could not be written.';
COMMENT ON COLUMN stats.isolated_late IS 'Isolated events that were not yet written after audit.isolated_timeout. They may have been since.';
COMMENT ON COLUMN stats.sampled_out IS 'Row changes of committed transactions that sampling left out.';
COMMENT ON COLUMN stats.audit_errors IS 'Failures of auditing itself: attempts of the worker to write, and errors in sessions that are no fault of theirs.';
COMMENT ON COLUMN stats.unsealed_changesets IS 'Changesets that are not in the Merkle log yet.';
COMMENT ON COLUMN stats.seal_lag IS 'How long ago the oldest of them occurred; NULL where there is none.';
COMMENT ON COLUMN stats.stats_reset IS 'When audit.stats_reset was last called since the server started.';

CREATE VIEW stats_tables AS
    SELECT p.target, p.mode, s.events, s.sampled_out, s.capture_time
      FROM policy p LEFT JOIN table_state() s ON s.relid = p.target;
COMMENT ON VIEW stats_tables IS 'Audited tables with what was counted for them since stats_reset or the server''s start, in transactions that committed: of modes async and sampled always, of mode sync while audit.track_timing was on; NULL where nothing was.';
COMMENT ON COLUMN stats_tables.target IS 'The table.';
COMMENT ON COLUMN stats_tables.mode IS 'Its mode now.';
COMMENT ON COLUMN stats_tables.events IS 'Events recorded, or handed to the worker.';
COMMENT ON COLUMN stats_tables.sampled_out IS 'Row changes that sampling left out.';
COMMENT ON COLUMN stats_tables.capture_time IS 'Time spent capturing, while audit.track_timing was on; without what commit adds.';

COMMENT ON FUNCTION table_state() IS 'What audit.stats_tables shows.';
COMMENT ON FUNCTION failure_classes() IS 'What audit.stats shows as failures_by_class.';
COMMENT ON FUNCTION queue_state() IS 'The row of audit.stats.';
COMMENT ON FUNCTION stats_reset() IS 'Sets the numbers of audit.stats and audit.stats_tables to zero, for this database.';
