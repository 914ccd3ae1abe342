-- Appends events to streams and stores the record of the place, all or nothing.
-- KEYS: the streams, and then the place if there is one.
-- ARGV: how many streams, MAXLEN or '', then of a placed write owner, writes so far,
-- writes after, record ('' of an unplaced one); and for each event: the number of its
-- stream, its offset, how many arguments follow, fields and values.
local streams, maxlen, placed = tonumber(ARGV[1]), ARGV[2], #KEYS > tonumber(ARGV[1])
local place = KEYS[#KEYS]
if placed then
  local now = redis.call('HMGET', place, 'owner', 'writes')
  if (now[1] or '') ~= ARGV[3] then return {'fenced'} end
  if (now[2] or '0') ~= ARGV[4] then return {'forgot', now[2] or '0'} end
  if not redis.acl_check_cmd('HSET', place, 'f', 'v') then return {'denied', 0, 'HSET'} end
end
for i = 1, streams do
  local t = redis.call('TYPE', KEYS[i]).ok
  if t ~= 'stream' and t ~= 'none' then return {'type', i, t} end
  if not redis.acl_check_cmd('XADD', KEYS[i], '*', 'f', 'v') then return {'denied', i, 'XADD'} end
  if not redis.acl_check_cmd('XDEL', KEYS[i], '0-1') then return {'denied', i, 'XDEL'} end
  if not redis.acl_check_cmd('XINFO', 'STREAM', KEYS[i]) then return {'denied', i, 'XINFO'} end
end

local function add(stream, ms, from, to)
  if maxlen == '' then return redis.pcall('XADD', stream, ms .. '-*', unpack(ARGV, from, to)) end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', maxlen, ms .. '-*', unpack(ARGV, from, to))
end

-- newest is the first part of the last id that a stream gave, kept by the server
-- even if the entry is gone.
local function newest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
  end
end

local late, added = {}, {} -- late: of streams whose ids are beyond our offsets
local at, last, event = 7, #ARGV, 0
while at < last do
  event = event + 1
  local i = tonumber(ARGV[at])
  local stream, ms, from, to = KEYS[i], ARGV[at + 1], at + 3, at + 2 + tonumber(ARGV[at + 2])
  if late[i] and (#ms < #late[i] or #ms == #late[i] and ms <= late[i]) then ms = late[i] end
  local id = add(stream, ms, from, to)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    late[i] = newest(stream)
    id = add(stream, late[i], from, to)
  end
  if type(id) == 'table' then -- as if nothing had been
    for n = #added, 1, -1 do redis.call('XDEL', added[n][1], added[n][2]) end
    return {'failed', event, id.err}
  end
  added[event] = {stream, id}
  at = to + 1
end
if placed then redis.call('HSET', place, 'record', ARGV[6], 'writes', ARGV[5]) end
return {'ok'}
