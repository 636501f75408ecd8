-- A primary key that is written at its end, and ids that are found without an index that is not.
--
-- Ids are random. An index that begins with them is written to everywhere at once, and once it has outgrown the
-- server's memory each new row dirties a page of its own. Half a million rows by COPY into a day with fifty million
-- rows, against the same into an empty one, three rounds, PostgreSQL 15, two cores:
--
--   primary key                        rate, full / empty   WAL a row
--   (id, client_id, ts)                0.32 0.42 0.31       7.4 to 7.9 KB
--   (ten minutes of ts, id, client_id, ts)
--                                      0.52 0.55 0.62       0.8 KB
--   (client_id, ts, id)                0.82 0.71 0.74       0.6 KB
--   none                               0.79 0.84 0.78       0.5 KB
--
-- It promises what the old one did: a retry is byte-identical, so its ts is too. And it serves the pages of a client.
--
-- Takes an exclusive lock and sorts every day once, about a minute for fifty million rows: there is no way to change the
-- key of a partitioned table beside its writers. Consumers wait meanwhile, the log keeps what they will read. An older
-- binary works on it as before.
alter table events drop constraint events_pkey, add primary key (client_id, ts, id);

-- Who asks for one event knows its id alone. A Bloom filter for each half megabyte of rows tells where an id cannot be:
-- 146 MB for fifty million, read whole for a question. Rows that are not in it yet are read, so it is filled every half
-- million of them (`autovacuum_vacuum_insert_threshold` below and where a day is made); written at insert it would
-- cost, but only what was filled in is kept up.
--
-- 4,000 ids: 64 pages hold about 3,000 rows of 170 bytes. One in a thousand: of fifty million rows, 17 such pieces are
-- read in vain.
--
-- Of the id's hash and not of the id: nothing else serves that condition. By the id itself the planner would rather read
-- the whole primary key, or the whole day, because it expects the one row to be spread over many pages.
--
-- An index that finds an id at once is made for a day that is over, or when an id must be looked up for a row that is
-- written (store/postgres/ids.rs).
create index events_id on events
 using brin (uuid_hash(id) int4_bloom_ops (n_distinct_per_range = 4000, false_positive_rate = 0.001))
  with (pages_per_range = 64);

do $$
declare
    day regclass;
begin
    for day in select inhrelid from pg_inherits where inhparent = 'events'::regclass loop
        execute format('alter table %s set (autovacuum_vacuum_insert_scale_factor = 0,
                                            autovacuum_vacuum_insert_threshold = 500000)', day);
    end loop;
end
$$;
