-- The twin of the PostgreSQL migration of the same number, which argues. Times and UUIDs are written out, because the
-- file's own forms are for the program. No role: who can open the file can read it.
create view client_events as
select clients.name as client,
       lower(format('%s-%s-%s-%s-%s', substr(hex(device_id), 1, 8), substr(hex(device_id), 9, 4),
                    substr(hex(device_id), 13, 4), substr(hex(device_id), 17, 4), substr(hex(device_id), 21))) as device_id,
       event_type, value,
       strftime('%Y-%m-%dT%H:%M:%fZ', ts / 1e6, 'unixepoch') as ts,
       metadata,
       strftime('%Y-%m-%dT%H:%M:%fZ', received_at / 1e6, 'unixepoch') as received_at
  from events join clients on clients.id = events.client_id;

create view client_dead_letters as
select clients.name as client,
       iif(dead_letters.id is null, null,
           lower(format('%s-%s-%s-%s-%s', substr(hex(dead_letters.id), 1, 8), substr(hex(dead_letters.id), 9, 4),
                    substr(hex(dead_letters.id), 13, 4), substr(hex(dead_letters.id), 17, 4), substr(hex(dead_letters.id), 21)))) as id,
       iif(device_id is null, null,
           lower(format('%s-%s-%s-%s-%s', substr(hex(device_id), 1, 8), substr(hex(device_id), 9, 4),
                    substr(hex(device_id), 13, 4), substr(hex(device_id), 17, 4), substr(hex(device_id), 21)))) as device_id,
       reason, sqlstate, detail,
       strftime('%Y-%m-%dT%H:%M:%fZ', dead_letters.created_at / 1e6, 'unixepoch') as created_at,
       attempt
  from dead_letters left join clients on clients.id = dead_letters.client_id;

create view stored_places as
select part, next, strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1e6, 'unixepoch') as updated_at
  from consumer_offsets where grp = 'pulsestream-store';
