-- The twin of the PostgreSQL migration of the same number, which argues. Nothing here: `events` has one index over all
-- days, and its key is the promise itself, one event per client and id.
select 1;
