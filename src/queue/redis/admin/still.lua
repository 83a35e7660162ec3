-- still(origin, the last member seen or '', n) -> the last member seen, '' if that was all: what waits for a paused
-- endpoint grows no older. What comes to wait later is written down so.
local origin, after, n = ARGV[1], ARGV[2], assert(tonumber(ARGV[3]))
check_types()
if not is_paused(origin) then return '' end
open_for_writing()
local from = after == '' and '[' .. origin .. '\n' or '(' .. after
local found = redis.call('ZRANGEBYLEX', WAITING, from, '[' .. origin .. '\n:', 'LIMIT', 0, n)
for _, one in ipairs(found) do
  local id = string.sub(one, -16)
  local history = redis.call('HGET', HISTORY, id)
  local attempts, own, why = string.match(history or '', '^(%d+) (%d+) %d+ (.*)$')
  if attempts then put_off(id, history, attempts, own, why, true) end
end
return #found == n and found[#found] or ''
