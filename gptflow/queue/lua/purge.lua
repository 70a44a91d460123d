-- Forget dead jobs.
--
-- KEYS: the sorted set of dead jobs
-- ARGV: prefix, ids
-- Returns how many of them were dead, and are gone now. A job that has been enqueued again stays.
local gone = 0
for index = 2, #ARGV do
  local id = ARGV[index]
  local job = place_of(id)
  if job.state == 'dead' then
    call('DEL', job_key(id), P .. 'input:' .. id, P .. 's:' .. id)
    call('ZREM', P .. 'jobs', id)
    if job.idem and call('GET', job.idem) == id then call('DEL', job.idem) end
    gone = gone + 1
  end
  if not job.state or job.state == 'dead' then call('ZREM', KEYS[1], id) end
end
return gone
