-- Tell schedulers where schedules stand. One that is new, or declared anew, begins now.
--
-- KEYS: the schedules' keys
-- ARGV: prefix, then for each schedule when it fires, in words; "" to leave that as it is
-- Returns the time, then for each {mark, held, paused}: the moment up to which fires are settled,
-- the one up to which they are held back for the job of an earlier one ("" for none), 1 or 0.
local time = text(now())
local found = { time }
for index, key in ipairs(KEYS) do
  local stands, when = read(key, 'mark', 'held', 'paused', 'when'), ARGV[index + 1]
  if not stands.mark or (when ~= '' and when ~= stands.when) then
    stands.mark, stands.held = time, nil
    call('HSET', key, 'mark', time)
    call('HDEL', key, 'held')
    if when ~= '' then call('HSET', key, 'when', when) end
  end
  found[#found + 1] = { stands.mark, stands.held or '', stands.paused and 1 or 0 }
end
return found
